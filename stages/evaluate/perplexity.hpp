// Perplexity: exp of the mean negative log-likelihood of a text's tokens, read through windows.
#pragma once
#include <vector>

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

/// Rows of a text that go through a model together, and are scored.
struct ScoredLeaf {
  at::Tensor tokens;                 // int64 [rows, length]
  std::vector<int64_t> scored_from;  // by row: the tokens from this one on, which is not the first
  int64_t scored() const;            // tokens of all rows
};

/// The windows of a text, in order; a shorter last one is a leaf of its own. tokens: int32 or int64
/// [tokens] or [1, tokens]; longest: tokens that the model reads. Fewer than two tokens are
/// ExitCode::data, settings out of range ExitCode::config.
std::vector<ScoredLeaf> cut_windows(const at::Tensor& tokens, const PerplexitySettings& settings,
                                    int64_t longest);

/// Sum of the negative log-likelihoods, in nats, of a leaf's scored tokens, each predicted by the
/// hidden state [rows, length, hidden] of the token before it: float32 each, added up in float64 in
/// the tokens' order. Logits that are not finite are ExitCode::data. Independent.
double loss_of(const Model& model, const ScoredLeaf& leaf, const at::Tensor& hidden,
               const OuterWeights& outer, kernels::Context context);

struct Perplexity {
  double perplexity = 0;
  double loss = 0;     // negative log-likelihood a token, in nats
  int64_t tokens = 0;  // scored
  int64_t windows = 0;
};

/// Of the windows of `tokens`, as cut_windows() takes them: the same bits for any number of
/// threads. Independent.
Perplexity measure_perplexity(const Model& model, const at::Tensor& tokens,
                              const PerplexitySettings& settings, const OuterWeights& outer,
                              const BlockSource& blocks, kernels::Context context,
                              const std::function<void(int64_t, int64_t)>& on_block = {});

/// The one row of `input_ids` (int64 or int32, [tokens] or [1, tokens]) of a safetensors file.
/// Others: ExitCode::data.
at::Tensor read_text_tokens(const fs::path& path);

}  // namespace selfcal
