// Sampling from tiny models: what the text depends on and what not, the policies at the end of a
// text, agreement with teacher-forced logits; token files and random ids.
#include "stages/generate/generator.hpp"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <map>

#include "stages/generate/sequence.hpp"
#include "storage/tensor_file.hpp"
#include "tests/storage/temporary_folder.hpp"

namespace selfcal {
namespace {

const fs::path models = fs::path(SELFCAL_TEST_DATA) / "models";

CalibrationSettings small(int64_t sequences = 8, int64_t length = 40) {
  CalibrationSettings settings;
  settings.sequences = sequences;
  settings.length = length;
  settings.micro_batch = 4;
  settings.seed = 11;
  return settings;
}

struct Text {
  at::Tensor tokens, log_prob, temperature;
};

MicroBatch sample(Generator& generator, int64_t index) {
  MicroBatch sampled;
  generator.sample({index}, [&](MicroBatch batch) { sampled = std::move(batch); });
  return sampled;
}

/// All micro-batches of a set.
Text generate(const fs::path& model_path, const CalibrationSettings& settings, int threads = 2,
              int64_t at_once = 1) {
  kernels::use_one_library_thread();
  ThreadPool pool(threads, kernels::use_one_library_thread);
  const auto model = open_model(model_path, "auto", {&pool});
  Generator generator(*model, settings, {&pool}, at_once);
  std::vector<int64_t> indices;
  for (int64_t index = 0; index < micro_batches(settings); ++index) indices.push_back(index);
  std::map<int64_t, MicroBatch> batches;
  generator.sample(indices, [&](MicroBatch batch) { batches[batch.index] = std::move(batch); });
  std::vector<at::Tensor> tokens, log_prob, temperature;
  for (const auto& [index, batch] : batches) {
    tokens.push_back(batch.tokens);
    log_prob.push_back(batch.log_prob);
    temperature.push_back(batch.temperature);
  }
  return {at::cat(tokens), at::cat(log_prob), at::cat(temperature)};
}

/// A copy of a model whose config.json has `from` replaced by `to`.
fs::path edited(const TemporaryFolder& folder, const std::string& model, const std::string& from,
                const std::string& to) {
  const fs::path copy = folder / model;
  fs::copy(models / model, copy, fs::copy_options::recursive);
  std::string config = read_bytes(copy / "config.json");
  const size_t at = config.find(from);
  if (at == std::string::npos) throw std::runtime_error("config.json lacks " + from);
  fs::remove(copy / "config.json");
  write_bytes(copy / "config.json", config.replace(at, from.size(), to));
  return copy;
}

const std::string two_ends = "\"eos_token_id\": [\n    2,\n    5\n  ]";
const std::string many_ends = "\"eos_token_id\": [2, 5, 30, 31, 32, 33, 34, 35, 36, 37]";

TEST(Generator, TextDoesNotDependOnThreads) {
  const Text expected = generate(models / "tied-bf16", small(), 1);
  for (int threads : {2, 4}) {
    const Text text = generate(models / "tied-bf16", small(), threads);
    EXPECT_TRUE(at::equal(text.tokens, expected.tokens));
    EXPECT_TRUE(at::equal(text.log_prob, expected.log_prob));
    EXPECT_TRUE(at::equal(text.temperature, expected.temperature));
  }
}

TEST(Generator, AMicroBatchAloneIsTheSameInAnyOrder) {
  const Text whole = generate(models / "llama3", small());
  ThreadPool pool(2, kernels::use_one_library_thread);
  const auto model = open_model(models / "llama3", "auto", {&pool});
  Generator generator(*model, small(), {&pool});
  for (int64_t index : {1, 0})
    EXPECT_TRUE(at::equal(sample(generator, index).tokens, whole.tokens.narrow(0, 4 * index, 4)));
}

TEST(Generator, SideBySideIsTheSameText) {
  // Rows that are drawn anew end at different steps: micro-batches then take each other's places.
  for (const auto end_of_text : {EndOfText::pack, EndOfText::redraw}) {
    auto settings = small(18, 24);
    settings.end_of_text = end_of_text;
    const Text expected = generate(models / "tied-bf16", settings);
    for (const int64_t at_once : {2, 3, 5, 8}) {
      const Text text = generate(models / "tied-bf16", settings, 2, at_once);
      EXPECT_TRUE(at::equal(text.tokens, expected.tokens)) << at_once;
      EXPECT_TRUE(at::equal(text.log_prob, expected.log_prob)) << at_once;
    }
  }
}

TEST(Generator, SmallerSetsArePrefixes) {
  const Text whole = generate(models / "llama3", small(8));
  for (int64_t n : {1, 2, 4, 7}) {
    const Text part = generate(models / "llama3", small(n));
    ASSERT_EQ(part.tokens.size(0), n);
    EXPECT_TRUE(at::equal(part.tokens, whole.tokens.narrow(0, 0, n)));
  }
}

TEST(Generator, SeedsAndSetsDiffer) {
  auto settings = small();
  const Text first = generate(models / "llama3", settings);
  settings.set = 1;
  const Text second = generate(models / "llama3", settings);
  settings.set = 0;
  settings.seed = 12;
  const Text third = generate(models / "llama3", settings);
  EXPECT_LT((first.tokens == second.tokens).to(at::kFloat).mean().item<float>(), 0.2);
  EXPECT_LT((first.tokens == third.tokens).to(at::kFloat).mean().item<float>(), 0.2);
}

/// Log-probabilities of each row's tokens by one forward of the whole rows: [rows, length - 1].
at::Tensor teacher_forced(const Model& model, const Generator& generator,
                          const at::Tensor& tokens) {
  at::Tensor hidden = model.embed(tokens, generator.outer_weights());
  for (int64_t layer = 0; layer < model.shape().layers; ++layer)
    hidden = forward(model.block(layer), hidden, generator.block_weights(layer));
  const auto logits =
      model.logits(hidden.view({-1, model.shape().hidden}), generator.outer_weights())
          .view({tokens.size(0), tokens.size(1), -1});
  const auto log_probs =
      at::log_softmax(logits.narrow(1, 0, tokens.size(1) - 1).to(at::kDouble), -1);
  return log_probs.gather(-1, tokens.narrow(1, 1, tokens.size(1) - 1).to(at::kLong).unsqueeze(-1))
      .squeeze(-1);
}

TEST(Generator, LogProbabilitiesAgreeWithTeacherForcing) {
  // In bfloat16 the two ways round to neighbours here and there, one layer after the other.
  for (auto [name, tolerance] :
       {std::pair{"llama3", 2e-5}, {"mistral", 2e-5}, {"tied-bf16", 0.08}}) {
    ThreadPool pool(2, kernels::use_one_library_thread);
    const auto model = open_model(models / name, "auto", {&pool});
    auto settings = small(4, 60);
    settings.end_of_text = EndOfText::pack;
    Generator generator(*model, settings, {&pool});
    const MicroBatch batch = sample(generator, 0);
    const auto expected = teacher_forced(*model, generator, batch.tokens);
    const auto drawn = batch.temperature.narrow(1, 1, 59) > 0;
    const auto difference = (batch.log_prob.narrow(1, 1, 59) - expected).abs().masked_select(drawn);
    EXPECT_GT(difference.numel(), 200);
    EXPECT_LT(difference.max().item<double>(), tolerance) << name;
  }
}

TEST(Generator, PackForcesAStartBehindEachEnd) {
  TemporaryFolder folder;
  const auto model = edited(folder, "tied-bf16", two_ends, many_ends);
  auto settings = small(8, 60);
  settings.temperature_initial = 1.5;
  settings.temperature_final = 0.5;
  settings.temperature_steps = 4;
  const Text text = generate(model, settings);
  const std::vector<int64_t> ends = {2, 5, 30, 31, 32, 33, 34, 35, 36, 37};
  int documents = 0;
  for (int64_t row = 0; row < 8; ++row) {
    const auto* tokens = text.tokens[row].const_data_ptr<int32_t>();
    const auto* temperature = text.temperature[row].const_data_ptr<float>();
    const auto* log_prob = text.log_prob[row].const_data_ptr<float>();
    int64_t begin = 0;
    for (int64_t i = 0; i < 60; ++i) {
      const bool starts = i == 0 || std::count(ends.begin(), ends.end(), tokens[i - 1]) > 0;
      if (starts) {
        begin = i;
        documents += i > 0;
        EXPECT_EQ(tokens[i], 1);
        EXPECT_EQ(temperature[i], 0);
        EXPECT_EQ(log_prob[i], 0);
      } else {
        EXPECT_FLOAT_EQ(temperature[i], static_cast<float>(settings.temperature_at(i - begin - 1)));
        EXPECT_LT(log_prob[i], 0);
      }
    }
  }
  EXPECT_GT(documents, 10);
}

TEST(Generator, PackNeedsOneTokenWhereStartAndEndAreTheSame) {
  TemporaryFolder folder;
  const auto model = edited(folder, "llama3", "\"eos_token_id\": 2", "\"eos_token_id\": 1");
  auto settings = small(8, 120);
  settings.temperature_initial = 3;
  settings.temperature_final = 0.9;
  settings.temperature_steps = 1;
  const Text text = generate(model, settings);
  const auto inner = text.tokens.narrow(1, 1, 118);
  const auto begins = (inner == 1).nonzero();
  ASSERT_GT(begins.size(0), 0);  // sampled ends, each the start of the next text
  for (int64_t i = 0; i < begins.size(0); ++i) {
    const int64_t row = begins[i][0].item<int64_t>(), column = begins[i][1].item<int64_t>() + 1;
    EXPECT_GT(text.temperature[row][column].item<float>(), 0);
    EXPECT_EQ(text.temperature[row][column + 1].item<float>(), 3);
  }
}

TEST(Generator, BanNeverEnds) {
  TemporaryFolder folder;
  const auto model = edited(folder, "tied-bf16", two_ends, many_ends);
  auto settings = small(8, 60);
  settings.end_of_text = EndOfText::ban;
  const Text text = generate(model, settings);
  for (int token : {2, 5, 30, 31, 32, 33, 34, 35, 36, 37})
    EXPECT_FALSE(text.tokens.eq(token).any().item<bool>());
  EXPECT_TRUE((text.temperature.narrow(1, 1, 59) == 1).all().item<bool>());
}

TEST(Generator, RedrawKeepsOnlyWholeTexts) {
  auto settings = small(8, 60);
  settings.end_of_text = EndOfText::redraw;
  const Text text = generate(models / "tied-bf16", settings);
  const auto inner = text.tokens.narrow(1, 1, 58);
  EXPECT_FALSE(at::logical_or(inner == 2, inner == 5).any().item<bool>());
  EXPECT_TRUE((text.temperature.narrow(1, 1, 59) == 1).all().item<bool>());
  // Rows that met no end at once are those of the other policies.
  settings.end_of_text = EndOfText::pack;
  const Text packed = generate(models / "tied-bf16", settings);
  int same = 0, redrawn = 0;
  for (int64_t row = 0; row < 8; ++row) {
    const auto packed_inner = packed.tokens[row].narrow(0, 1, 58);
    const bool ended = at::logical_or(packed_inner == 2, packed_inner == 5).any().item<bool>();
    EXPECT_EQ(at::equal(packed.tokens[row], text.tokens[row]), !ended);
    (ended ? redrawn : same) += 1;
  }
  EXPECT_GT(redrawn, 0);
  EXPECT_GT(same, 0);
  // What one row does is of no concern to the others.
  settings.end_of_text = EndOfText::redraw;
  settings.micro_batch = 3;
  EXPECT_TRUE(at::equal(generate(models / "tied-bf16", settings).tokens, text.tokens));
}

TEST(Generator, RedrawGivesUpWithAdvice) {
  TemporaryFolder folder;
  std::string all = "\"eos_token_id\": [2";
  for (int token = 3; token < 159; ++token) all += ", " + std::to_string(token);
  const auto model = edited(folder, "tied-bf16", two_ends, all + "]");
  auto settings = small(4, 30);
  settings.end_of_text = EndOfText::redraw;
  expect_error(ExitCode::data, "try pack or ban", [&] { generate(model, settings); });
}

TEST(Generator, RandomPromptGivesTheFirstToken) {
  auto settings = small(64, 3);
  settings.micro_batch = 16;
  settings.prompt = PromptKind::random;
  const Text text = generate(models / "tied-bf16", settings);
  EXPECT_TRUE((text.tokens.select(1, 0) == 1).all().item<bool>());
  const auto first = text.tokens.select(1, 1);
  EXPECT_FALSE(at::logical_or(first == 2, first == 5).any().item<bool>());
  EXPECT_GT(std::get<0>(at::_unique(first)).numel(), 40);
  EXPECT_TRUE((text.log_prob.select(1, 1) == 0).all().item<bool>());
  EXPECT_TRUE((text.temperature.select(1, 1) == 0).all().item<bool>());
}

TEST(Generator, AModelWithoutAStartTokenBeginsWithItsEnd) {
  TemporaryFolder folder;
  const auto model = edited(folder, "llama3", "\"bos_token_id\": 1", "\"bos_token_id\": null");
  EXPECT_TRUE((generate(model, small(4, 5)).tokens.select(1, 0) == 2).all().item<bool>());
}

TEST(Generator, ReportsProgressAndStopsWhenAsked) {
  ThreadPool pool(2, kernels::use_one_library_thread);
  const auto model = open_model(models / "llama3", "auto", {&pool});
  Generator generator(*model, small(4, 10), {&pool});
  std::vector<int64_t> seen;
  const auto ignore = [](const MicroBatch&) {};
  generator.sample({0}, ignore, [&](int64_t done) { seen.push_back(done); });
  EXPECT_EQ(seen.front(), 4);
  EXPECT_EQ(seen.back(), 36);
  EXPECT_EQ(seen.size(), 9U);
  const auto stop = [](int64_t done) {
    if (done > 20) fail(ExitCode::stopped, "enough");
  };
  expect_error(ExitCode::stopped, "enough", [&] { generator.sample({0}, ignore, stop); });
}

TEST(Generator, SettingsOutOfRangeAreNamed) {
  auto settings = small();
  settings.length = 10000;
  expect_error(ExitCode::config, "calibration.length is 10000",
               [&] { generate(models / "llama3", settings); });
  settings = small();
  settings.top_p = 0;
  expect_error(ExitCode::config, "top_p", [&] { generate(models / "llama3", settings); });
}

ModelShape shape_of(int64_t vocabulary) {
  ModelShape shape;
  shape.vocabulary = vocabulary;
  return shape;
}

class TokenSource : public testing::Test {
 protected:
  CalibrationSettings settings(const fs::path& path) {
    auto result = small(3, 5);
    result.source = CalibrationSource::tokens;
    result.tokens_path = path.string();
    return result;
  }
  fs::path write(const char* name, const at::Tensor& ids) {
    write_tensor_file(folder / "tokens.safetensors", {{name, ids}});
    return folder / "tokens.safetensors";
  }

  TemporaryFolder folder;
  const at::Tensor tokens = at::arange(56, at::kLong).view({8, 7});
};

TEST_F(TokenSource, ReadsRowsOfTheSet) {
  for (auto dtype : {at::kLong, at::kInt}) {
    auto chosen = settings(write("input_ids", tokens.to(dtype)));
    chosen.set = 1;
    const CalibrationSet set = read_token_source(chosen, shape_of(56));
    EXPECT_EQ(set.tokens.scalar_type(), at::kInt);
    EXPECT_TRUE(at::equal(set.tokens, tokens.narrow(0, 3, 3).narrow(1, 0, 5).to(at::kInt)));
    EXPECT_TRUE(at::equal(set.lengths, at::full({3}, 5, at::kInt)));
    EXPECT_EQ(set.log_prob.abs().sum().item<float>(), 0);
    EXPECT_EQ(set.source, "tokens");
    EXPECT_EQ(set.set, 1);
  }
}

TEST_F(TokenSource, ReadsCalibrationFiles) {
  const CalibrationSet drawn = draw_vocabulary(small(6, 9), shape_of(100));
  write_calibration(folder / "set.h5", drawn);
  const CalibrationSet set = read_token_source(settings(folder / "set.h5"), shape_of(100));
  EXPECT_TRUE(at::equal(set.tokens, drawn.tokens.narrow(0, 0, 3).narrow(1, 0, 5)));
}

TEST_F(TokenSource, BadFilesAreNamed) {
  const auto fails = [&](const std::string& part, const CalibrationSettings& chosen) {
    expect_error(ExitCode::data, part, [&] { read_token_source(chosen, shape_of(56)); });
  };
  auto chosen = settings(write("input_ids", tokens));
  chosen.set = 2;
  fails("8 rows of tokens, set 2 of 3 sequences needs 9", chosen);
  chosen.set = 0;
  chosen.length = 8;
  fails("rows of 7 tokens, expected at least calibration.length 8", chosen);
  fails("no tensor 'input_ids'", settings(write("ids", tokens)));
  fails("expected int32 or int64", settings(write("input_ids", tokens.to(at::kFloat))));
  fails("1 dimensions", settings(write("input_ids", tokens.view({-1}))));
  auto outside = tokens.clone();
  outside[2][4] = 56;
  fails("row 2, position 4: token id 56, expected 0 to 55", settings(write("input_ids", outside)));
  outside[2][4] = -1;
  fails("token id -1", settings(write("input_ids", outside)));
  write_bytes(folder / "short", "abc");
  fails("short", settings(folder / "short"));
}

TEST_F(TokenSource, ShortRowsOfCalibrationFilesAreNamed) {
  CalibrationSet drawn = draw_vocabulary(small(6, 9), shape_of(50));
  drawn.lengths[2] = 4;
  write_calibration(folder / "set.h5", drawn);
  expect_error(ExitCode::data, "row 2 has 4 tokens",
               [&] { read_token_source(settings(folder / "set.h5"), shape_of(50)); });
}

TEST(Vocabulary, IsUniformAndRepeatable) {
  const auto settings = small(100, 100);
  const CalibrationSet set = draw_vocabulary(settings, shape_of(20));
  EXPECT_TRUE(at::equal(set.tokens, draw_vocabulary(settings, shape_of(20)).tokens));
  EXPECT_TRUE(
      at::equal(draw_vocabulary(small(7, 100), shape_of(20)).tokens, set.tokens.narrow(0, 0, 7)));
  const auto counts = at::bincount(set.tokens.view({-1}).to(at::kLong), {}, 20).to(at::kDouble);
  EXPECT_EQ(counts.numel(), 20);
  EXPECT_LT(((counts - 500).square() / 500).sum().item<double>(), 43.8);  // 19 degrees, p = 0.001
}

TEST(Settings, IdentityNamesWhatDecidesTheContent) {
  CalibrationSettings a, b;
  EXPECT_EQ(a.identity(), b.identity());
  b.tokens_path = "x";
  EXPECT_EQ(a.identity(), b.identity());
  b.top_k = 5;
  EXPECT_NE(a.identity(), b.identity());
  b = a;
  b.end_of_text = EndOfText::ban;
  EXPECT_NE(a.identity(), b.identity());
}

}  // namespace
}  // namespace selfcal
