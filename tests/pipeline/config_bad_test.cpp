// Bad configurations of every kind end in one line with ExitCode::config: never a crash, never a
// silent default.
#include <gtest/gtest.h>

#include <random>

#include "base/error.hpp"
#include "pipeline/config.hpp"
#include "tests/pipeline/minimal_config.hpp"

namespace selfcal {
namespace {

/// The error's text; empty when there is none.
std::string error_of(const std::string& yaml, const std::vector<std::string>& settings = {}) {
  try {
    parse_jobs(yaml, "run.yaml", settings);
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ExitCode::config) << error.what();
    EXPECT_EQ(std::string(error.what()).find('\n'), std::string::npos) << error.what();
    return error.what();
  }
  return {};
}

struct Case {
  std::string yaml, expected;
};

class BadConfig : public testing::TestWithParam<Case> {};

TEST_P(BadConfig, SaysWhereWhatAndWhatInstead) {
  EXPECT_EQ(error_of(minimal + GetParam().yaml), GetParam().expected);
}

INSTANTIATE_TEST_SUITE_P(
    Keys, BadConfig,
    testing::Values(
        Case{"method: {bitz: 4}\n",
             "run.yaml:3: method.bitz: found an unknown key, expected method.bits perhaps"},
        Case{"bits: 4\n", "run.yaml:3: bits: found an unknown key, expected method.bits perhaps"},
        Case{"calibrations:\n  length: 4\n",
             "run.yaml:3: calibrations: found an unknown key, expected calibration perhaps"},
        Case{"calibration: {temperature: {inital: 1}}\n",
             "run.yaml:3: calibration.temperature.inital: found an unknown key, expected "
             "calibration.temperature.initial perhaps"},
        Case{"zzzzzzzzz: 1\n",
             "run.yaml:3: zzzzzzzzz: found an unknown key, expected one of those that `selfcal "
             "config-help` lists"},
        Case{"seed: 1\nmethod: {bits: 4}\nseed: 2\n",
             "run.yaml:5: seed: found twice, expected once (first at run.yaml:3)"},
        Case{"method:\n  bits: 4\n  bits: 4\n",
             "run.yaml:5: method.bits: found twice, expected once (first at run.yaml:4)"},
        Case{"<<: {seed: 1}\n",
             "run.yaml:3: \"<<\": found an unknown key, expected one of those that `selfcal "
             "config-help` lists"},
        Case{"[a, b]: 1\n",
             "run.yaml:3: the configuration: found a list as a key, expected text"}));

INSTANTIATE_TEST_SUITE_P(
    Values, BadConfig,
    testing::Values(
        Case{"method: {bits: 9}\n",
             "run.yaml:3: method.bits: found 9, expected auto or 16 or integer from 2 to 8"},
        Case{"method:\n\n  bits: four\n",
             "run.yaml:5: method.bits: found four, expected auto or 16 or integer from 2 to 8"},
        Case{"method: {bits: \"4\"}\n",
             "run.yaml:3: method.bits: found the text 4, expected auto or 16 or integer from 2 to "
             "8"},
        Case{"method: {bits: 4.0}\n",
             "run.yaml:3: method.bits: found 4.0, expected auto or 16 or integer from 2 to 8"},
        Case{"method: {bits: 0x4}\n",
             "run.yaml:3: method.bits: found 0x4, expected auto or 16 or integer from 2 to 8"},
        Case{"method: {bits: }\n",
             "run.yaml:3: method.bits: found nothing, expected auto or 16 or integer from 2 to 8"},
        Case{"method: {bits: [4]}\n",
             "run.yaml:3: method.bits: found a list, expected auto or 16 or integer from 2 to 8"},
        Case{"method: {group_size: 0}\n",
             "run.yaml:3: method.group_size: found 0, expected -1 or integer from 1 to 1048576"},
        Case{"method: {group_size: -2}\n",
             "run.yaml:3: method.group_size: found -2, expected -1 or integer from 1 to "
             "1048576"},
        Case{"seed: 99999999999999999999999\n",
             "run.yaml:3: seed: found 99999999999999999999999, expected integer of at least 0"},
        Case{"seed: -1\n", "run.yaml:3: seed: found -1, expected integer of at least 0"},
        Case{"threads: 0\n",
             "run.yaml:3: threads: found 0, expected auto or integer from 1 to 1024"},
        Case{"method: {damping: .nan}\n",
             "run.yaml:3: method.damping: found .nan, expected number from 0.0 to 1.0"},
        Case{"method: {damping: nan}\n",
             "run.yaml:3: method.damping: found nan, expected number from 0.0 to 1.0"},
        Case{"method: {damping: .inf}\n",
             "run.yaml:3: method.damping: found .inf, expected number from 0.0 to 1.0"},
        Case{"method: {damping: 1e999}\n",
             "run.yaml:3: method.damping: found 1e999, expected number from 0.0 to 1.0"},
        Case{"calibration: {temperature: {initial: -1}}\n",
             "run.yaml:3: calibration.temperature.initial: found -1, expected number from 0.0 to "
             "100.0"},
        Case{"calibration: {sampling: {top_p: 1.5}}\n",
             "run.yaml:3: calibration.sampling.top_p: found 1.5, expected number above 0.0 up to "
             "1.0"},
        Case{"method: {symmetric: yes}\n",
             "run.yaml:3: method.symmetric: found yes, expected true | false"},
        Case{"method: {name: awq, clip: maybe}\n",
             "run.yaml:3: method.clip: found maybe, expected true | false"},
        Case{"method: {name: awq, scale_loss: mlp}\n",
             "run.yaml:3: method.scale_loss: found mlp, expected linear | module"},
        Case{"method: {name: awq, duo_scaling: both}\n",
             "run.yaml:3: method.duo_scaling: found both, expected true | false"},
        Case{"method: {name: gtpq}\n",
             "run.yaml:3: method.name: found gtpq, expected gptq | sparsegpt | awq | wanda | "
             "magnitude | "
             "nearest"},
        Case{"method: {pattern: 2;4}\n",
             "run.yaml:3: method.pattern: found \"2;4\", expected none or zeros:of (as in 2:4, at "
             "most "
             "64 columns)"},
        Case{"method: {pattern: 2:65}\n",
             "run.yaml:3: method.pattern: found \"2:65\", expected none or zeros:of (as in 2:4, at "
             "most "
             "64 columns)"},
        Case{"method: {sparsity: -0.5}\n",
             "run.yaml:3: method.sparsity: found -0.5, expected number from 0.0 to 0.99"},
        Case{"layout: {generators: {depth: 0}}\n",
             "run.yaml:3: layout.generators.depth: found 0, expected auto or integer from 1 to "
             "1048576"},
        Case{"calibration: {sets: 2}\n",
             "run.yaml:3: calibration.sets: found 2, expected 1 (more is not supported yet)"},
        Case{"calibration: {prompt: bos}\n",
             "run.yaml:3: calibration.prompt: found bos, expected a map"},
        Case{"calibration: {prompt: {kind: file}}\n",
             "run.yaml:3: calibration.prompt.kind: found file, which is not supported yet, "
             "expected bos | random"},
        Case{"layout: {memory: 4 potatoes}\n",
             "run.yaml:3: layout.memory: found \"4 potatoes\", expected auto or bytes (as in "
             "900MiB or 4GB)"},
        Case{"layout: {memory: 99999999999GB}\n",
             "run.yaml:3: layout.memory: found 99999999999GB, expected auto or bytes (as in 900MiB "
             "or 4GB)"},
        Case{"layout: [1]\n", "run.yaml:3: layout: found a list, expected a map"},
        Case{"skip: lm_head\n",
             "run.yaml:3: skip: found lm_head, expected list of regular expressions"},
        Case{"skip: ['a(']\n",
             "run.yaml:3: skip: found \"a(\", expected list of regular expressions"},
        Case{"export: [gguf]\n",
             "run.yaml:3: export: found gguf, expected list of compressed-tensors | gptq | gptq_v2 "
             "| "
             "awq | dense"},
        Case{"name: ../up\n",
             "run.yaml:3: name: found ../up, expected letters, digits, dot, dash, underscore"},
        Case{"name: \"a\\nb\"\n",
             "run.yaml:3: name: found a control character in the text \"a\\x0ab\", expected "
             "letters, digits, dot, dash, underscore"},
        Case{"overrides: {match: a}\n",
             "run.yaml:3: overrides: found a map, expected list of maps"},
        Case{"overrides:\n  - {match: a, bits: 4}\n  - {bits: 4}\n",
             "run.yaml:5: overrides[1].match: found nothing, expected regular expression"},
        Case{"overrides:\n  - {match: a, bits: 40}\n",
             "run.yaml:4: overrides[0].bits: found 40, expected auto or 16 or integer from 2 to 8"},
        Case{"overrides:\n  - {match: a, bitss: 4}\n",
             "run.yaml:4: overrides[0].bitss: found an unknown key, expected overrides[0].bits "
             "perhaps"},
        Case{"overrides:\n  - {match: a, match: b}\n",
             "run.yaml:4: overrides[0].match: found twice, expected once (first at run.yaml:4)"},
        Case{"overrides: [{match: a}]\n",
             "run.yaml:3: overrides[0].match: found no setting beside it, expected bits, "
             "group_size, method, sparsity, pattern or skip"},
        Case{"overrides:\n  - {match: a, pattern: 4:4}\n",
             "run.yaml:4: overrides[0].pattern: found \"4:4\", expected none or zeros:of (as in "
             "2:4, at "
             "most 64 columns)"},
        Case{"overrides: [{match: a, method: sparse}]\n",
             "run.yaml:3: overrides[0].method: found sparse, expected gptq | sparsegpt | awq | "
             "wanda | "
             "magnitude | nearest"},
        Case{"overrides: [{match: a, sparsity: 1.0}]\n",
             "run.yaml:3: overrides[0].sparsity: found 1.0, expected number from 0.0 to 0.99"},
        Case{"overrides: [a]\n",
             "run.yaml:3: overrides: found a in the list, expected list of maps"}));

INSTANTIATE_TEST_SUITE_P(
    Together, BadConfig,
    testing::Values(
        Case{"calibration: {source: tokens}\n",
             "run.yaml: calibration.tokens: found nothing, expected a path (calibration.source is "
             "tokens)"},
        Case{"calibration: {tokens: a.h5}\n",
             "run.yaml: calibration.tokens: found a.h5, expected null unless calibration.source is "
             "tokens"},
        Case{"method: {act_order: static, static_groups: false}\n",
             "run.yaml: method.static_groups: found false, expected true (method.act_order is "
             "static)"},
        Case{"method: {name: wanda, sparsity: 0.5, layer_sparsity: owl, owl: {lambda: 0.6}}\n",
             "run.yaml:3: method.owl.lambda: found 0.6, expected number from 0.0 to 0.5"},
        Case{"method: {name: wanda, pattern: 2:4, layer_sparsity: owl}\n",
             "run.yaml: method.layer_sparsity: found owl, expected uniform unless method.sparsity "
             "is set"},
        Case{"method: {layer_sparsity: owl}\n",
             "run.yaml: method.layer_sparsity: found owl, expected uniform unless method.sparsity "
             "is set"},
        Case{"method: {name: wanda, pattern: 2:4, act_order: static}\n",
             "run.yaml: method.act_order: found static, expected auto or none (method.name is "
             "wanda)"},
        Case{"method: {bits: 16}\n",
             "run.yaml: method.bits: found 16, expected auto or 2 to 8 (method.name is gptq)"},
        Case{"method: {name: wanda}\n",
             "run.yaml: method.sparsity: found nothing, expected a share or method.pattern "
             "(method.name is wanda)"},
        Case{"method: {name: wanda, pattern: 2:4, sparsity: 0.5}\n",
             "run.yaml: method.pattern: found 2:4 beside method.sparsity, expected one"},
        Case{"method: {sparsity: 0.5}\n",
             "run.yaml: method.sparsity: expected nothing unless a method prunes (method.name is "
             "gptq)"},
        Case{"method: {name: sparsegpt, pattern: 2:4, block_size: 127}\n",
             "run.yaml: method.block_size: found 127, expected a multiple of 4"},
        Case{"evaluate: {perplexity: {window: 512, stride: 513}}\n",
             "run.yaml: evaluate.perplexity.stride: found 513, expected at most the window, 512"}));

TEST(BadConfigText, IsRefusedWithItsLine) {
  EXPECT_EQ(
      error_of(""),
      "run.yaml: found nothing, expected a configuration (`selfcal config-help` lists the keys)");
  EXPECT_EQ(error_of("# only a comment\n"), error_of(""));
  EXPECT_EQ(error_of("output: x\n"), "run.yaml: model.path: found nothing, expected path");
  EXPECT_EQ(error_of("- a\n- b\n"), "run.yaml:1: the configuration: found a list, expected a map");
  EXPECT_EQ(error_of("text\n"), "run.yaml:1: the configuration: found text, expected a map");
  EXPECT_EQ(error_of("model:\n\tpath: x\n").substr(0, 20), "run.yaml:2: not YAML");
  EXPECT_EQ(error_of("model: {path: x\n").substr(0, 9), "run.yaml:");
  EXPECT_EQ(error_of("model: *nowhere\n").substr(0, 21), "run.yaml:1: not YAML:");
  EXPECT_EQ(error_of(minimal + "---\n" + minimal),
            "run.yaml: found 2 YAML documents, expected one");
  EXPECT_EQ(error_of(minimal + "name: \xff\xfe\n"),
            "run.yaml:3: found the byte 0xff, expected UTF-8 text");
  EXPECT_EQ(error_of(minimal + std::string("name: a\0b\n", 10)),
            "run.yaml:3: found the byte 0x00, expected UTF-8 text");
  EXPECT_EQ(error_of("\xc0\x80"), "run.yaml:1: found the byte 0xc0, expected UTF-8 text");
  EXPECT_EQ(error_of("\xe2\x82"), "run.yaml:1: found the byte 0xe2, expected UTF-8 text");
  EXPECT_EQ(error_of(std::string(1 << 21, '#')),
            "run.yaml: found 2097152 bytes, expected a configuration of at most 1048576");
  EXPECT_NE(error_of(std::string(100000, '[')), "");
  EXPECT_NE(error_of(std::string(100000, '{')), "");
}

TEST(BadConfigText, AnchorsAreReadAndLoopsRefused) {
  EXPECT_EQ(error_of("model: {path: &p x}\noutput: *p\n"), "");
  EXPECT_NE(error_of(minimal + "layout: &l {generators: *l}\n"), "");
  EXPECT_NE(error_of(minimal + "overrides: &l [*l]\n"), "");
}

TEST(BadConfigText, SettingsOfTheCommandLineAreCheckedToo) {
  EXPECT_EQ(
      error_of(minimal, {"method.bits=9"}),
      "--set method.bits=9: method.bits: found 9, expected auto or 16 or integer from 2 to 8");
  EXPECT_EQ(error_of(minimal, {"method.bit=9"}),
            "--set method.bit=9: method.bit: found an unknown key, expected method.bits perhaps");
  EXPECT_EQ(error_of(minimal, {"method="}), "");
  EXPECT_EQ(
      error_of(minimal, {"method.bits="}),
      "--set method.bits=: method.bits: found nothing, expected auto or 16 or integer from 2 to 8");
  EXPECT_EQ(error_of(minimal, {"skip=[a"}).substr(0, 13), "--set skip=[a");
  EXPECT_NE(error_of(minimal, {"skip=\xff"}), "");
  EXPECT_THROW(parse_config(minimal, "run.yaml", {"method.bits"}), Error);
  EXPECT_THROW(parse_config(minimal, "run.yaml", {"=1"}), Error);
}

TEST(BadConfigText, MissingFileAndFolder) {
  for (const char* path : {"/nonexistent/run.yaml", "/tmp"}) {
    try {
      load_jobs(path);
      ADD_FAILURE() << path;
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ExitCode::config);
      EXPECT_NE(std::string(error.what()).find(path), std::string::npos) << error.what();
    }
  }
}

/// Random damage to a good file: every outcome is a configuration or one line of error.
TEST(BadConfigText, RandomDamageNeverCrashes) {
  const std::string good =
      to_yaml(parse_config(minimal, "run.yaml", {"overrides=[{match: a, bits: 8}]"})) +
      "jobs:\n  - {name: a, method: {bits: 3}}\n  - seed: 4\n"
      "sweep:\n  calibration.set: [0, 1]\n  method: [{name: gptq}, {name: nearest}]\n";
  const std::string letters = "{}[]:,-#&*!|>'\"%@`?\t\n 0aZ~.\\";
  std::mt19937 random(7);
  int refused = 0;
  for (int round = 0; round < 3000; ++round) {
    std::string damaged = good;
    for (unsigned i = 0, count = 1 + random() % 4; i < count; ++i) {
      const size_t at = random() % damaged.size();
      switch (random() % 4) {
        case 0:
          damaged[at] = letters[random() % letters.size()];
          break;
        case 1:
          damaged.erase(at, 1 + random() % 20);
          break;
        case 2:
          damaged.insert(at, 1, letters[random() % letters.size()]);
          break;
        default:
          damaged[at] = static_cast<char>(random() % 256);
      }
      if (damaged.empty()) damaged = " ";
    }
    refused += !error_of(damaged).empty();
  }
  EXPECT_GT(refused, 500);
}

}  // namespace
}  // namespace selfcal
