// Logits files and perplexity: against transformers' logits, and against a plain calculation from
// logits of windows.
#include <ATen/ATen.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cmath>

#include "base/error.hpp"
#include "stages/evaluate/logits.hpp"
#include "stages/evaluate/perplexity.hpp"

namespace selfcal {
namespace {

const fs::path data = fs::path(SELFCAL_TEST_DATA) / "models";

class Evaluate : public testing::Test {
 protected:
  Evaluate() {
    kernels::use_one_library_thread();
    fs::create_directories(directory);
  }
  ~Evaluate() override { fs::remove_all(directory); }

  /// logits float32 [rows, tokens, vocabulary] of the command.
  at::Tensor logits_of(const std::string& name, const at::Tensor& tokens,
                       const std::string& dtype = "float32") {
    write_tensor_file(directory / "tokens.safetensors", {{"input_ids", tokens}});
    write_logits(data / name, directory / "tokens.safetensors", directory / "logits.safetensors",
                 dtype, context);
    return TensorFile(directory / "logits.safetensors").read("logits");
  }
  Perplexity perplexity_of(const at::Tensor& tokens, const PerplexitySettings& settings) {
    return measure_perplexity(*model, tokens, settings, outer, dense_blocks(*model), context);
  }
  ExitCode code_of(const std::function<void()>& action) {
    try {
      action();
    } catch (const Error& error) {
      return error.code();
    }
    return ExitCode::done;
  }

  ThreadPool pool{2, kernels::use_one_library_thread};
  kernels::Context context{&pool};
  const fs::path directory =
      fs::temp_directory_path() / fmt::format("selfcal-evaluate-{}", ::getpid());
  std::unique_ptr<Model> model = open_model(data / "llama3", "float32", context);
  OuterWeights outer = model->read_outer();
  at::Tensor text =
      TensorFile(data / "llama3" / "reference.safetensors").read("input_ids").reshape({-1});
};

TEST_F(Evaluate, LogitsFileEqualsTransformers) {
  const TensorFile reference(data / "llama3" / "reference.safetensors");
  const auto found = logits_of("llama3", reference.read("input_ids")),
             expected = reference.read("logits");
  EXPECT_LT(((found - expected).abs().max() / expected.std()).item<double>(), 1e-4);
}

TEST_F(Evaluate, LogitsOfManyRowsAreThoseOfEach) {
  // 60 rows of 40 tokens make two leaves; a leaf's shape may move the last bits only.
  const auto tokens = at::randint(160, {60, 40}, at::kLong);
  const auto all = logits_of("tied-bf16", tokens, "auto");
  EXPECT_EQ(all.sizes(), (at::IntArrayRef{60, 40, 160}));
  for (const int64_t row : {0, 50, 51, 59})
    EXPECT_LT((logits_of("tied-bf16", tokens.slice(0, row, row + 1), "auto")[0] - all[row])
                  .abs()
                  .max()
                  .item<float>(),
              0.2);
}

TEST_F(Evaluate, BadTokenFilesAreNamed) {
  const auto logits_code = [&](const at::Tensor& tokens) {
    return code_of([&] { logits_of("llama3", tokens); });
  };
  EXPECT_EQ(logits_code(at::ones({4}, at::kLong)), ExitCode::data);
  EXPECT_EQ(logits_code(at::ones({1, 4}, at::kFloat)), ExitCode::data);
  EXPECT_EQ(logits_code(at::full({1, 4}, 160, at::kLong)), ExitCode::data);
  EXPECT_EQ(logits_code(at::ones({1, 257}, at::kLong)), ExitCode::data);
  EXPECT_FALSE(fs::exists(directory / "logits.safetensors"));
}

/// Hugging Face's recipe, token by token, from the logits of each window.
std::pair<double, int64_t> loss_by_recipe(
    const std::function<at::Tensor(const at::Tensor&)>& logits, const at::Tensor& text,
    int64_t window, int64_t stride) {
  double sum = 0;
  int64_t count = 0;
  for (int64_t begin = 0, reached = 0; begin < text.numel(); begin += stride) {
    const int64_t end = std::min(begin + window, text.numel());
    const auto ids = text.slice(0, begin, end);
    const auto scores = logits(ids.unsqueeze(0))[0].to(at::kDouble).log_softmax(-1);
    for (int64_t t = begin + 1; t < end; ++t)
      if (t >= reached) {
        sum -= scores[t - 1 - begin][text[t].item<int64_t>()].item<double>();
        ++count;
      }
    reached = end;
    if (end == text.numel()) break;
  }
  return {sum, count};
}

TEST_F(Evaluate, PerplexityEqualsTheRecipe) {
  for (const auto& [window, stride] :
       std::vector<std::pair<int64_t, int64_t>>{{16, 16}, {32, 32}, {30, 7}, {80, 80}}) {
    const auto [sum, count] = loss_by_recipe(
        [&](const at::Tensor& ids) { return logits_of("llama3", ids); }, text, window, stride);
    const Perplexity found = perplexity_of(text, {window, stride});
    EXPECT_EQ(found.tokens, count) << window << " " << stride;
    EXPECT_NEAR(found.loss, sum / static_cast<double>(count), 2e-6) << window << " " << stride;
    EXPECT_NEAR(found.perplexity, std::exp(found.loss), 1e-9);
  }
}

TEST_F(Evaluate, WindowsCanBeLimited) {
  const Perplexity found = perplexity_of(text, {16, 16, 2});
  EXPECT_EQ(found.windows, 2);
  EXPECT_EQ(found.tokens, 30);
  EXPECT_EQ(found.loss, perplexity_of(text.slice(0, 0, 32), {16, 16}).loss);
}

TEST_F(Evaluate, ShortLastWindow) {
  EXPECT_EQ(perplexity_of(text.slice(0, 0, 33), {16, 16}).tokens,
            30);  // one token alone predicts nothing
  EXPECT_EQ(perplexity_of(text.slice(0, 0, 34), {16, 16}).tokens, 31);
}

TEST_F(Evaluate, PerplexityKeepsItsBits) {
  const double expected = perplexity_of(text, {20, 10}).loss;
  for (const int threads : {1, 4}) {
    ThreadPool other(threads, kernels::use_one_library_thread);
    const auto same = open_model(data / "llama3", "float32", {&other});
    EXPECT_EQ(measure_perplexity(*same, text, {20, 10}, outer, dense_blocks(*same), {&other}).loss,
              expected);
  }
}

TEST_F(Evaluate, BlocksComeFromTheSource) {
  std::vector<int64_t> asked;
  const BlockSource spoiled = [&](int64_t layer) {
    asked.push_back(layer);
    BlockWeights weights = model->read_block(layer);
    weights.at("mlp.down_proj.weight") = weights.at("mlp.down_proj.weight") * 0.5;
    return weights;
  };
  const double dense = perplexity_of(text, {20, 20}).loss;
  EXPECT_NE(measure_perplexity(*model, text, {20, 20}, outer, spoiled, context).loss, dense);
  EXPECT_EQ(asked, (std::vector<int64_t>{0, 1}));
}

TEST_F(Evaluate, BadSettingsAndTexts) {
  EXPECT_EQ(code_of([&] { perplexity_of(text, {1, 1}); }), ExitCode::config);
  EXPECT_EQ(code_of([&] { perplexity_of(text, {300, 300}); }), ExitCode::config);
  EXPECT_EQ(code_of([&] { perplexity_of(text, {16, 17}); }), ExitCode::config);
  EXPECT_EQ(code_of([&] { perplexity_of(text, {16, 0}); }), ExitCode::config);
  EXPECT_EQ(code_of([&] { perplexity_of(text.slice(0, 0, 1), {16, 16}); }), ExitCode::data);
  const fs::path path = directory / "text.safetensors";
  write_tensor_file(path, {{"input_ids", at::ones({2, 4}, at::kLong)}});
  EXPECT_EQ(code_of([&] { read_text_tokens(path); }), ExitCode::data);
  write_tensor_file(path, {{"input_ids", at::ones({1, 4}, at::kInt)}});
  EXPECT_EQ(read_text_tokens(path).sizes(), (at::IntArrayRef{4}));
}

}  // namespace
}  // namespace selfcal
