// Perplexity: exp of the mean negative log-likelihood of a text's tokens, read through windows.
#pragma once
#include <string>

#include "stages/evaluate/streamed_forward.hpp"

namespace selfcal {

/// Windows of `window` tokens begin every `stride` tokens (Hugging Face's "Perplexity of
/// fixed-length models"). A token is scored once, by the first window that reaches it with a token
/// before it: all but a window's first where stride equals window, a window's last `stride` where
/// it is smaller.
struct PerplexitySettings {
  int64_t window = 2048;
  int64_t stride = 2048;  // 1 to window
  int64_t windows = 0;    // only so many, each whole; 0: all, the last may be shorter
};

struct Perplexity {
  double perplexity = 0;
  double loss = 0;     // negative log-likelihood a token, in nats
  int64_t tokens = 0;  // scored
  int64_t windows = 0;
};

/// tokens: int32 or int64 [tokens] or [1, tokens]. Losses are float32, their sum float64 in the
/// tokens' order: the same bits for any number of threads. Fewer than two tokens are
/// ExitCode::data, settings out of range ExitCode::config. Independent.
Perplexity measure_perplexity(const Model& model, const at::Tensor& tokens,
                              const PerplexitySettings& settings, const OuterWeights& outer,
                              const BlockSource& blocks, kernels::Context context,
                              const std::function<void(int64_t, int64_t)>& on_block = {});

/// Adds the negative log-likelihoods, in nats, of targets [n], each predicted by a row of hidden
/// [n, hidden], to `sum`, one by one. Independent.
void add_losses(const Model& model, const at::Tensor& hidden, const at::Tensor& targets,
                const OuterWeights& outer, kernels::Context context, double& sum);

/// The one row of `input_ids` (int64 or int32, [tokens] or [1, tokens]) of a safetensors file.
/// Others: ExitCode::data.
at::Tensor read_text_tokens(const fs::path& path);

}  // namespace selfcal
