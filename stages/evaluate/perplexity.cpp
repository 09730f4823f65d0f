#include "stages/evaluate/perplexity.hpp"

#include <ATen/ATen.h>

#include <cmath>
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

std::vector<Window> cut_windows(int64_t tokens, const PerplexitySettings& settings) {
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
    fail(ExitCode::config, "perplexity: window {}, expected 2 to {} (what the model reads)",
         settings.window, longest);
  if (settings.stride < 1 || settings.stride > settings.window)
    fail(ExitCode::config, "perplexity: stride {}, expected 1 to the window of {}", settings.stride,
         settings.window);
  if (tokens < 2 || (settings.windows > 0 && tokens < settings.window))
    fail(ExitCode::data, "perplexity: a text of {} tokens, expected {} or more", tokens,
         settings.windows > 0 ? settings.window : 2);
}

/// Leaves of windows, in order; a shorter last window is a leaf of its own.
std::vector<at::Tensor> read_windows(const at::Tensor& text, std::span<const Window> windows) {
  const bool short_last = windows.back().length() < windows.front().length();
  std::vector<at::Tensor> rows;
  for (const Window& window : windows) rows.push_back(text.slice(0, window.first, window.end));
  const auto whole = static_cast<std::ptrdiff_t>(rows.size()) - (short_last ? 1 : 0);
  auto leaves = cut_rows(at::stack(std::vector(rows.begin(), rows.begin() + whole)));
  if (short_last) leaves.push_back(rows.back().unsqueeze(0));
  return leaves;
}

}  // namespace

void add_losses(const Model& model, const at::Tensor& hidden, const at::Tensor& targets,
                const OuterWeights& outer, kernels::Context context, double& sum) {
  for_logits(model, hidden, outer, [&](const at::Tensor& logits, int64_t first) {
    const at::Tensor losses =
        kernels::cross_entropy(context, logits,
                               targets.slice(0, first, first + logits.size(0)).to(logits.device()))
            .to(at::kCPU);
    const float* loss = losses.const_data_ptr<float>();
    for (int64_t i = 0; i < losses.numel(); ++i) sum += loss[i];
  });
}

Perplexity measure_perplexity(const Model& model, const at::Tensor& tokens,
                              const PerplexitySettings& settings, const OuterWeights& outer,
                              const BlockSource& blocks, kernels::Context context,
                              const std::function<void(int64_t, int64_t)>& on_block) {
  const at::Tensor text = tokens.reshape({-1}).to(at::kLong);
  check(settings, text.numel(), model.shape().maximum_length);
  const std::vector<Window> windows = cut_windows(text.numel(), settings);
  const auto leaves = streamed_forward(model, read_windows(text, windows), outer, blocks, on_block);
  Perplexity result;
  for (const at::Tensor& leaf : leaves)
    for (const at::Tensor& hidden : leaf.unbind(0)) {
      const Window& window = windows[static_cast<size_t>(result.windows++)];
      // The hidden state of a token predicts the next token.
      add_losses(model, hidden.slice(0, window.scored - 1 - window.first, window.length() - 1),
                 text.slice(0, window.scored, window.end), outer, context, result.loss);
      result.tokens += window.end - window.scored;
    }
  result.loss /= static_cast<double>(result.tokens);
  result.perplexity = std::exp(result.loss);
  if (!std::isfinite(result.loss))
    fail(ExitCode::data, "perplexity: the model's logits are not finite");
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
