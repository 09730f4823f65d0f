#include "stages/evaluate/perplexity.hpp"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <span>

#include "base/error.hpp"
#include "storage/dtype.hpp"

namespace selfcal {
namespace {

/// Tokens [first, end) of the text; those from `scored` on count.
struct Window {
  int64_t first, end, scored;
  int64_t length() const { return end - first; }
};

std::vector<Window> windows_of(int64_t tokens, const PerplexitySettings& settings) {
  std::vector<Window> windows;
  for (int64_t first = 0, reached = 0; reached < tokens; first += settings.stride) {
    const int64_t end = std::min(first + settings.window, tokens);
    const bool enough =
        settings.windows > 0 && static_cast<int64_t>(windows.size()) == settings.windows;
    if (enough || (settings.windows > 0 && end - first < settings.window)) break;
    windows.push_back({first, end, std::max(reached, first + 1)});
    reached = end;
  }
  return windows;
}

void check(const PerplexitySettings& settings, int64_t tokens, int64_t longest) {
  if (settings.window < 2 || settings.window > longest)
    fail(ExitCode::config, "window {}, expected 2 to {} (what the model reads)", settings.window,
         longest);
  if (settings.stride < 1 || settings.stride > settings.window)
    fail(ExitCode::config, "stride {}, expected 1 to the window of {}", settings.stride,
         settings.window);
  if (tokens < 2 || (settings.windows > 0 && tokens < settings.window))
    fail(ExitCode::data, "a text of {} tokens, expected {} or more", tokens,
         settings.windows > 0 ? settings.window : 2);
}

ScoredLeaf leaf_of(const at::Tensor& text, std::span<const Window> windows) {
  ScoredLeaf leaf;
  std::vector<at::Tensor> rows;
  for (const Window& window : windows) {
    rows.push_back(text.slice(0, window.first, window.end));
    leaf.scored_from.push_back(window.scored - window.first);
  }
  leaf.tokens = at::stack(rows);
  return leaf;
}

}  // namespace

int64_t ScoredLeaf::scored() const {
  return tokens.numel() - std::accumulate(scored_from.begin(), scored_from.end(), int64_t{0});
}

std::vector<ScoredLeaf> cut_windows(const at::Tensor& tokens, const PerplexitySettings& settings,
                                    int64_t longest) {
  const at::Tensor text = tokens.reshape({-1}).to(at::kLong);
  check(settings, text.numel(), longest);
  const std::vector<Window> all = windows_of(text.numel(), settings);
  std::span<const Window> rest = all;
  const auto rows = static_cast<size_t>(leaf_rows(settings.window));
  std::vector<ScoredLeaf> leaves;
  while (!rest.empty()) {
    const auto shorter = [&](const Window& window) {
      return window.length() < rest.front().length();
    };
    const auto alike = std::ranges::find_if(rest, shorter) - rest.begin();
    const size_t count = std::min(rows, static_cast<size_t>(alike));
    leaves.push_back(leaf_of(text, rest.first(count)));
    rest = rest.subspan(count);
  }
  return leaves;
}

double loss_of(const Model& model, const ScoredLeaf& leaf, const at::Tensor& hidden,
               const OuterWeights& outer, kernels::Context context) {
  const int64_t length = leaf.tokens.size(1);
  double sum = 0;
  for (size_t row = 0; row < leaf.scored_from.size(); ++row) {
    const auto index = static_cast<int64_t>(row);
    const int64_t from = leaf.scored_from[row];
    const at::Tensor targets = leaf.tokens[index].slice(0, from, length);
    const auto add = [&](const at::Tensor& logits, int64_t first) {
      const at::Tensor expected =
          targets.slice(0, first, first + logits.size(0)).to(logits.device());
      const at::Tensor losses = kernels::cross_entropy(context, logits, expected).to(at::kCPU);
      const float* loss = losses.const_data_ptr<float>();
      for (int64_t i = 0; i < losses.numel(); ++i) sum += loss[i];
    };
    for_logits(model, hidden[index].slice(0, from - 1, length - 1), outer, add);
  }
  if (!std::isfinite(sum)) fail(ExitCode::data, "the model's logits are not finite");
  return sum;
}

Perplexity measure_perplexity(const Model& model, const at::Tensor& tokens,
                              const PerplexitySettings& settings, const OuterWeights& outer,
                              const BlockSource& blocks, kernels::Context context,
                              const std::function<void(int64_t, int64_t)>& on_block) {
  const auto leaves = cut_windows(tokens, settings, model.shape().maximum_length);
  std::vector<at::Tensor> rows;
  for (const ScoredLeaf& leaf : leaves) rows.push_back(leaf.tokens);
  const auto hidden = streamed_forward(model, rows, outer, blocks, on_block);
  Perplexity result;
  for (size_t i = 0; i < leaves.size(); ++i) {
    result.loss += loss_of(model, leaves[i], hidden[i], outer, context);
    result.tokens += leaves[i].scored();
    result.windows += leaves[i].tokens.size(0);
  }
  result.loss /= static_cast<double>(result.tokens);
  result.perplexity = std::exp(result.loss);
  return result;
}

at::Tensor read_text_tokens(const fs::path& path) {
  const TensorFile file(path);
  if (!file.contains("input_ids")) fail(ExitCode::data, "{}: no tensor 'input_ids'", path.string());
  const TensorEntry& entry = file.entries().at("input_ids");
  const bool one_row = entry.shape.size() == 1 || (entry.shape.size() == 2 && entry.shape[0] == 1);
  if ((entry.dtype != at::kLong && entry.dtype != at::kInt) || !one_row)
    fail(ExitCode::data,
         "{}: tensor 'input_ids' is {} {}, expected I64 or I32 [tokens] or [1, tokens]",
         path.string(), dtype_name(entry.dtype), shape_text(entry.shape));
  return file.read("input_ids").reshape({-1}).to(at::kLong);
}

}  // namespace selfcal
