// The configuration: defaults, every key, printing, the documentation page, identity, settings of
// each layer.
#include "pipeline/config.hpp"

#include <gtest/gtest.h>

#include <cstdlib>
#include <nlohmann/json.hpp>

#include "base/error.hpp"
#include "tests/pipeline/minimal_config.hpp"

namespace selfcal {
namespace {

RunConfig parse(const std::string& more = "", const std::vector<std::string>& settings = {}) {
  return parse_config(minimal + more, "run.yaml", settings);
}

std::string message(const std::function<void()>& action) {
  try {
    action();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ExitCode::config) << error.what();
    return error.what();
  }
  return "no error";
}

TEST(Config, DefaultsAreThoseOfTheDesign) {
  const RunConfig config = parse();
  EXPECT_EQ(config.model, "models/demo");
  EXPECT_EQ(config.name, "default");
  EXPECT_EQ(config.calibration.sequences, 128);
  EXPECT_EQ(config.calibration.micro_batch, 16);
  EXPECT_EQ(config.calibration.end_of_text, EndOfText::pack);
  EXPECT_EQ(config.method.name, MethodName::gptq);
  const MethodSettings settings = *settings_for(config, "model.layers.0.mlp.up_proj.weight");
  EXPECT_EQ(settings.bits, 4);
  EXPECT_EQ(settings.act_order, ActOrder::static_order);
  EXPECT_EQ(config.layout.mode, LayoutSettings::Mode::automatic);
  EXPECT_EQ(config.layout.replicas, 0);
  EXPECT_TRUE(config.true_sequential);
  EXPECT_EQ(config.exports, std::vector<std::string>{"compressed-tensors"});
  EXPECT_TRUE(config.evaluate.tokens.empty());
}

TEST(Config, ReadsEveryKindOfValue) {
  const RunConfig config = parse(R"(
name: sweep_1
seed: 9223372036854775807
threads: 2
layout: {mode: split, generators: {replicas: 2, depth: 1}, compressors: {shards: 2, team: 1}, memory: 900MiB}
calibration:
  source: tokens
  tokens: data/tokens.safetensors
  temperature: {initial: 2, final: 0.5, steps: 16}
  sampling: {top_k: 50, top_p: 0.9}
  end_of_text: redraw
  prompt: {kind: random}
method: {name: nearest, bits: 3, group_size: -1, symmetric: false, act_order: none, static_groups: false, mse: true,
         damping: 1e-3, block_size: 64, scale_dtype: float16, group_params: published, propagation: dense,
         sequential: per_block}
skip: []
overrides: [{match: 'down_proj$', bits: 8, group_size: 32}, {match: layers\.0\., skip: true}]
export: []
evaluate: {perplexity: {tokens: "a b.safetensors", window: 512, stride: 256}}
)");
  EXPECT_EQ(config.seed, 9223372036854775807);
  EXPECT_EQ(config.calibration.seed, config.seed);
  EXPECT_EQ(config.threads, 2);
  EXPECT_EQ(config.layout.mode, LayoutSettings::Mode::split);
  EXPECT_EQ(config.layout.shards, 2);
  EXPECT_EQ(config.layout.memory, 900ull << 20);
  EXPECT_EQ(config.calibration.source, CalibrationSource::tokens);
  EXPECT_EQ(config.calibration.temperature_initial, 2.0);
  EXPECT_EQ(config.calibration.temperature_steps, 16);
  EXPECT_EQ(config.calibration.top_k, 50);
  EXPECT_EQ(config.calibration.end_of_text, EndOfText::redraw);
  EXPECT_EQ(config.calibration.prompt, PromptKind::random);
  EXPECT_EQ(config.method.name, MethodName::nearest);
  EXPECT_EQ(config.method.group_size, -1);
  EXPECT_FALSE(config.method.symmetric);
  EXPECT_EQ(config.method.mse, AutoFlag::yes);
  EXPECT_DOUBLE_EQ(config.method.damping, 1e-3);
  EXPECT_EQ(config.method.scale_dtype, at::kHalf);
  EXPECT_EQ(config.method.group_parameters, GroupParameters::published);
  EXPECT_EQ(config.propagation, Propagation::dense);
  EXPECT_FALSE(config.true_sequential);
  EXPECT_TRUE(config.skip.empty());
  ASSERT_EQ(config.overrides.size(), 2u);
  EXPECT_EQ(config.overrides[0].group_size, 32);
  EXPECT_TRUE(config.overrides[1].skip);
  EXPECT_EQ(config.evaluate.tokens, "a b.safetensors");

  const std::string yaml = to_yaml(config);
  EXPECT_EQ(to_yaml(parse_config(yaml, "again")), yaml) << "printing and reading are inverse";
}

TEST(Config, PrintsWhatItReadsBack) {
  RunConfig config = parse();
  config.model = "odd: \"name\" \\ of # a {model}";
  config.name = "null";
  config.overrides = {{.match = "a'b\"c\\.d, e",
                       .bits = 2,
                       .group_size = {},
                       .method = MethodName::wanda,
                       .sparsity = 0.25,
                       .pattern = lanes::Pattern{},
                       .skip = false}};
  const std::string yaml = to_yaml(config);
  const RunConfig again = parse_config(yaml, "again");
  EXPECT_EQ(again.model, config.model);
  EXPECT_EQ(again.name, "null");
  EXPECT_EQ(again.overrides.at(0).match, config.overrides[0].match);
  EXPECT_EQ(to_yaml(again), yaml);
}

TEST(Config, CommandLineSettingsReplaceTheFile) {
  const RunConfig config =
      parse("method: {bits: 3}\n", {"method.bits=8", "output=/tmp/x", "skip=[a, b]",
                                    "calibration.temperature={initial: 2.0}", "seed=5", "seed=6"});
  EXPECT_EQ(config.method.bits, 8);
  EXPECT_EQ(config.output, "/tmp/x");
  EXPECT_EQ(config.skip, (std::vector<std::string>{"a", "b"}));
  EXPECT_EQ(config.calibration.temperature_initial, 2.0);
  EXPECT_EQ(config.seed, 6);
}

TEST(Config, EmptySectionsKeepTheirDefaults) {
  EXPECT_EQ(to_yaml(parse("layout:\ncalibration: {}\nmethod: ~\n")), to_yaml(parse()));
}

TEST(Config, PageIsInStepWithTheTable) {
  const fs::path page = fs::path(SELFCAL_TEST_DATA).parent_path().parent_path() / "docs/config.md";
  if (std::getenv("SELFCAL_UPDATE_DOCS") != nullptr) write_text_atomically(page, config_markdown());
  EXPECT_EQ(read_text(page), config_markdown())
      << "docs/config.md is out of date: run `selfcal config-help --markdown > docs/config.md`";
}

TEST(Config, IdentityHoldsWhatDecidesTheResult) {
  const std::string base = identity(parse()),
                    with_override = identity(parse("overrides: [{match: z, method: wanda}]\n"));
  EXPECT_TRUE(nlohmann::json::accept(base));
  for (const char* same :
       {"output=elsewhere", "name=other", "threads=2", "layout.mode=split", "export=[]",
        "evaluate.perplexity.window=512", "calibration.temperature.initial=2", "model.path=moved"})
    EXPECT_EQ(identity(parse("", {same, "evaluate.perplexity.stride=1"})), base) << same;
  for (const char* other :
       {"seed=1", "method.bits=3", "method.act_order=none", "method.group_params=published",
        "method.damping=0.02", "method.propagation=dense", "method.sequential=per_block",
        "calibration.micro_batch=8", "calibration.length=512", "model.dtype=float32", "skip=[a]",
        "overrides=[{match: a, bits: 8}]", "method.scale_dtype=float32", "method.block_size=64",
        "method.mse=true", "method.symmetric=false", "method.pattern=2:4", "method.sparsity=0.5"})
    EXPECT_NE(identity(parse("overrides: [{match: z, method: wanda}]\n", {other})), with_override)
        << other;
}

TEST(Config, ResolvesWhatTheModelDecides) {
  ModelShape shape;
  shape.stored_dtype = at::kHalf;
  shape.compute_dtype = at::kFloat;
  shape.maximum_length = 1024;
  const RunConfig config = resolve(parse("", {"calibration.length=1024"}), shape);
  EXPECT_EQ(config.method.scale_dtype, at::kHalf);
  EXPECT_EQ(config.dtype, "float32");
  EXPECT_EQ(to_yaml(resolve(config, shape)), to_yaml(config));
  EXPECT_NE(message([&] {
              resolve(parse(), shape);
            }).find("calibration.length: found 2048, expected at most 1024"),
            std::string::npos);
}

TEST(Config, ScalesMustFitTheExport) {
  ModelShape shape;
  shape.stored_dtype = shape.compute_dtype = at::kBFloat16;
  EXPECT_EQ(resolve(parse(), shape).method.scale_dtype, at::kBFloat16);
  const std::vector<std::string> wide{"method.scale_dtype=float32"};
  EXPECT_EQ(message([&] { resolve(parse("", wide), shape); }),
            "method.scale_dtype: found float32, expected auto or bfloat16 (compressed-tensors "
            "keeps scales in the "
            "model's dtype)");
  EXPECT_EQ(resolve(parse("export: [dense]\n", wide), shape).method.scale_dtype, at::kFloat);
  shape.stored_dtype = at::kFloat;  // computed in bfloat16 because model.dtype says so
  EXPECT_EQ(resolve(parse(), shape).method.scale_dtype, at::kBFloat16);
}

TEST(Config, LayersTakeTheFirstOverrideThatMatches) {
  const RunConfig config = parse(R"(
skip: [lm_head, "layers\\.1\\."]
overrides: [{match: down_proj$, bits: 8}, {match: mlp, group_size: 64}, {match: "layers.2.*q_proj", skip: true}]
)");
  EXPECT_FALSE(settings_for(config, "lm_head.weight"));
  EXPECT_FALSE(settings_for(config, "model.layers.1.mlp.up_proj.weight"));
  EXPECT_FALSE(settings_for(config, "model.layers.2.self_attn.q_proj"));
  EXPECT_TRUE(settings_for(config, "model.layers.11.mlp.up_proj.weight"));
  const auto down = settings_for(config, "model.layers.0.mlp.down_proj.weight");
  EXPECT_EQ(down->bits, 8);
  EXPECT_EQ(down->group_size, 128) << "only the first match counts";
  EXPECT_EQ(settings_for(config, "model.layers.0.mlp.up_proj")->group_size, 64);
}

TEST(Config, ScalesAreFoundOnTheWayWhereSparseGptPrunesAShareAndQuantises) {
  const auto groups = [](const std::string& method) {
    return settings_for(parse("method: {" + method + "}\n"), "o_proj")->static_groups;
  };
  EXPECT_EQ(groups("name: gptq"), AutoFlag::yes);
  EXPECT_EQ(groups("name: gptq, static_groups: false"), AutoFlag::no);
  EXPECT_EQ(groups("name: sparsegpt, pattern: 2:4"), AutoFlag::yes);
  EXPECT_EQ(groups("name: sparsegpt, pattern: 2:4, bits: 4"), AutoFlag::yes);
  EXPECT_EQ(groups("name: sparsegpt, sparsity: 0.5, bits: 4"), AutoFlag::no);
  EXPECT_EQ(groups("name: sparsegpt, sparsity: 0.5, bits: 4, act_order: dynamic"), AutoFlag::no);
  EXPECT_EQ(groups("name: sparsegpt, pattern: 2:4, bits: 4, act_order: static"), AutoFlag::yes);
  EXPECT_EQ(groups("name: sparsegpt, pattern: 2:4, bits: 4, static_groups: true"), AutoFlag::yes);
  EXPECT_EQ(groups("name: wanda, pattern: 2:4, bits: 4"), AutoFlag::yes);
}

TEST(Config, ScalesAreSearchedWhereGptqHasFewBits) {
  const RunConfig config =
      parse("overrides: [{match: k_proj, bits: 5}, {match: v_proj, bits: 2, method: nearest}]\n");
  EXPECT_EQ(settings_for(config, "q_proj")->mse, AutoFlag::yes);
  EXPECT_EQ(settings_for(config, "k_proj")->mse, AutoFlag::no);
  EXPECT_EQ(settings_for(config, "v_proj")->mse, AutoFlag::no);
  const auto search = [](const std::string& method) {
    return settings_for(parse("method: {" + method + "}\n"), "o_proj")->mse;
  };
  EXPECT_EQ(search("bits: 4"), AutoFlag::yes);
  EXPECT_EQ(search("bits: 5"), AutoFlag::no);
  EXPECT_EQ(search("bits: 3, mse: false"), AutoFlag::no);
  EXPECT_EQ(search("bits: 8, mse: true"), AutoFlag::yes);
  EXPECT_EQ(search("name: sparsegpt, pattern: 2:4, bits: 3"), AutoFlag::yes);
  EXPECT_EQ(search("name: sparsegpt, pattern: 2:4, bits: 3, static_groups: false"), AutoFlag::no);
  EXPECT_EQ(search("name: sparsegpt, sparsity: 0.5, bits: 3"), AutoFlag::no);
}

TEST(Config, LayersTakeTheirOwnMethodAndSparsity) {
  const RunConfig config = parse(R"(
method: {name: sparsegpt, pattern: 2:4}
overrides: [{match: q_proj, method: gptq}, {match: up_proj, bits: 4}, {match: down_proj, sparsity: 0.7},
            {match: k_proj, method: wanda, pattern: 4:8}, {match: v_proj, method: gptq, bits: 8}]
)");
  const auto of = [&](const std::string& name) { return *settings_for(config, name); };
  EXPECT_EQ(of("o_proj").name, MethodName::sparsegpt);
  EXPECT_EQ(of("o_proj").bits, 16);
  EXPECT_EQ(of("o_proj").act_order, ActOrder::static_order);
  EXPECT_EQ(of("up_proj").act_order, ActOrder::static_order) << "quantised too";
  EXPECT_EQ(of("down_proj").act_order, ActOrder::none) << "no pattern";
  EXPECT_EQ(of("o_proj").sparsity.pattern, (lanes::Pattern{2, 4}));
  EXPECT_EQ(of("q_proj").bits, 4);
  EXPECT_EQ(of("q_proj").act_order, ActOrder::static_order);
  EXPECT_FALSE(of("q_proj").sparsity.any());
  EXPECT_EQ(of("up_proj").bits, 4);
  EXPECT_TRUE(of("up_proj").prunes());
  EXPECT_EQ(of("down_proj").sparsity, (Sparsity{0.7, {}}));
  EXPECT_EQ(of("k_proj").name, MethodName::wanda);
  EXPECT_EQ(of("k_proj").sparsity.pattern, (lanes::Pattern{4, 8}));
  EXPECT_EQ(of("v_proj").bits, 8);
}

std::vector<NamedLinear> demo_linears() {
  std::vector<NamedLinear> linears;
  for (int layer = 0; layer < 30; ++layer) {
    const std::string block = fmt::format("model.layers.{}.", layer);
    for (const char* name : {"self_attn.q_proj", "self_attn.o_proj", "mlp.up_proj"})
      linears.push_back({block + name, 576, 576});
    linears.push_back({block + "mlp.down_proj", 576, 1536});
  }
  return linears;
}

TEST(Config, PruningMustSuitTheLayersAndTheExports) {
  const auto linears = demo_linears();
  const auto found = [&](const std::string& more) {
    return message([&] { check_linears(parse(more), linears); });
  };
  const std::string prune = "method: {name: sparsegpt, pattern: 2:4}\n";
  EXPECT_EQ(found(prune + "export: [dense]\n"), "no error");
  EXPECT_EQ(found(prune),
            "export: found compressed-tensors, expected dense or []: no layer is quantised");
  EXPECT_EQ(
      found("method: {name: wanda, pattern: 5:10}\nexport: []\n"),
      "method.pattern: 5:10 does not divide the 576 inputs of model.layers.0.self_attn.q_proj");
  EXPECT_EQ(
      found("method: {act_order: static, group_size: -1}\noverrides: [{match: up_proj, method: "
            "wanda, sparsity: 0.5}]\n"),
      "method: model.layers.0.mlp.up_proj: wanda takes the columns in their order: "
      "expected act_order auto or none");
  EXPECT_EQ(found("method: {group_size: -1}\noverrides: [{match: up_proj, bits: 16}]\n"),
            "method: model.layers.0.mlp.up_proj: bits is 16, expected 2 to 8");
  EXPECT_EQ(
      found("method: {group_size: -1}\noverrides: [{match: up_proj, method: wanda}]\n"),
      "method: model.layers.0.mlp.up_proj: wanda needs sparsity, as in 0.5, or pattern, as in "
      "2:4");
  EXPECT_EQ(found("method: {group_size: 64, pattern: 2:4}\noverrides: [{match: up_proj, method: "
                  "sparsegpt, bits: 3}]\n"),
            "no error");
}

TEST(Config, ExportsMustHoldTheBits) {
  const auto linears = demo_linears();
  const auto found = [&](const std::string& more) {
    return message([&] { check_linears(parse("method: {group_size: 64}\n" + more), linears); });
  };
  EXPECT_EQ(found("export: [awq, gptq, compressed-tensors, dense]\n"), "no error");
  EXPECT_EQ(found("export: [awq]\noverrides: [{match: up_proj, bits: 8}]\n"),
            "export: found awq, which cannot hold the 8 bits of model.layers.0.mlp.up_proj");
  EXPECT_EQ(found("export: [gptq]\noverrides: [{match: up_proj, bits: 5}]\n"),
            "export: found gptq, which cannot hold the 5 bits of model.layers.0.mlp.up_proj");
}

TEST(Config, ExportsMustHoldTheOrder) {
  const auto found = [&](const std::string& settings, const std::string& formats) {
    const std::string text = "method: {" + settings + "}\nexport: [" + formats + "]\n";
    return message([&] { check_linears(parse(text), demo_linears()); });
  };
  const std::string dynamic = "act_order: dynamic, group_size: 64";
  for (const std::string format : {"awq", "compressed-tensors"})
    EXPECT_EQ(found(dynamic, "dense, " + format),
              "export: found " + format +
                  ", which cannot hold method.act_order dynamic; gptq, gptq_v2 and dense can");
  EXPECT_EQ(found(dynamic, "gptq, gptq_v2, dense"), "no error");
  // Whole rows are one group whatever the order.
  EXPECT_EQ(found("act_order: dynamic, group_size: -1", "awq, compressed-tensors"), "no error");
}

TEST(Config, GroupSizeMustDivideTheColumns) {
  const auto linears = demo_linears();
  EXPECT_EQ(message([&] { check_linears(parse(), linears); }),
            "method.group_size: 128 does not divide the 576 inputs of 90 layers "
            "(model.layers.0.self_attn.q_proj, ...); "
            "32, 64, 96, 192 or -1 would");
  EXPECT_EQ(message([&] { check_linears(parse("", {"method.group_size=64"}), linears); }),
            "no error");
  EXPECT_EQ(message([&] { check_linears(parse("", {"method.group_size=-1"}), linears); }),
            "no error");
  EXPECT_EQ(message([&] {
              check_linears(parse("", {"method.group_size=64",
                                       "overrides=[{match: layers.3.mlp.down, group_size: 100}]"}),
                            linears);
            }),
            "method.group_size: 100 does not divide the 1536 inputs of 1 layer "
            "(model.layers.3.mlp.down_proj); "
            "32, 64, 96, 128, 192, 256, 384, 512, 768 or -1 would");
  EXPECT_EQ(message([&] {
              check_linears(parse("", {"method.group_size=64", "skip=[layers]"}), linears);
            }),
            "skip: found expressions that leave no layer to compress");
  EXPECT_NE(message([&] {
              check_linears(
                  parse("", {"method.group_size=64", "overrides=[{match: dwon_proj, bits: 8}]"}),
                  linears);
            }).find("overrides[0].match: found \"dwon_proj\", which is in the name of no layer"),
            std::string::npos);
}

}  // namespace
}  // namespace selfcal
