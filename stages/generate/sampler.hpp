// Chooses tokens from logits: temperature, then top-k, then top-p, then one uniform number against
// the prefix sums in vocabulary order.
#pragma once
#include <ATen/core/Tensor.h>

#include <vector>

#include "base/random.hpp"
#include "stages/kernels/ops.hpp"

namespace selfcal {

/// What may be chosen.
struct SamplingRule {
  int64_t top_k = 0;            // the k most likely, ties by lowest id; 0: all
  double top_p = 1.0;           // of these the fewest most likely that hold this probability
  std::vector<int64_t> banned;  // never chosen
};

/// A token to choose from row `row` of the logits, by the random number `id`.
struct Draw {
  int64_t row = 0;
  DrawId id;
  double temperature = 1.0;  // 0: the most likely token, the lowest id of equals
};

struct Choice {
  int64_t token = 0;
  /// Logarithm of the probability that it had under the distribution it was drawn from: after
  /// temperature, bans, top-k and top-p.
  float log_prob = 0;
};

/// Choice i belongs to draw i. logits: float32 [rows, vocabulary], overwritten where banned.
/// Exponentials are float32, sums float64. Tokens more than 86 nats below the likeliest are never
/// chosen. NaN, +infinity and rows without any possible token are ExitCode::data.
std::vector<Choice> choose_tokens(const kernels::Context& context, const at::Tensor& logits,
                                  const std::vector<Draw>& draws, const SamplingRule& rule);

}  // namespace selfcal
