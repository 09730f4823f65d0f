#include "stages/generate/sampler.hpp"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>

#include "base/error.hpp"
#include "stages/generate/ranking.hpp"
#include "stages/kernels/cpu/tiles.hpp"
#include "stages/kernels/cpu/vector_kernels.hpp"

namespace selfcal {
namespace {

constexpr int64_t block_length = kernels::exponential_block;

int64_t first_of(size_t block) { return static_cast<int64_t>(block) * block_length; }

/// The unnormalised probabilities of a row, with sums of blocks of tokens.
struct Weights {
  explicit Weights(int64_t count)
      : of_token(std::make_unique_for_overwrite<float[]>(count)),
        of_block((count + block_length - 1) / block_length) {}

  std::unique_ptr<float[]> of_token;
  std::vector<double> of_block;

  double total() const {
    double sum = 0;
    for (double block : of_block) sum += block;
    return sum;
  }
};

float largest_logit(const float* logits, int64_t count, const DrawId& id) {
  const float largest = kernels::vector_kernels().maximum(logits, count);
  if (std::isfinite(largest)) return largest;
  fail(ExitCode::data,
       "sequence {}, position {}: the largest logit is {}, expected a finite number; the model's "
       "weights or the compute dtype may be unfit",
       id.sequence, id.position, largest);
}

/// Sets to zero what top-k and top-p leave out.
void truncate(const float* logits, int64_t count, float largest, const SamplingRule& rule,
              Weights& weights) {
  const bool by_count = rule.top_k > 0 && rule.top_k < count, by_weight = rule.top_p < 1.0;
  if (!by_count && !by_weight) return;
  const Ranking ranking(logits, weights.of_token.get(), count, largest);
  Cut cut;
  if (by_count) cut = ranking.first(rule.top_k);
  if (by_weight) cut = ranking.holding(rule.top_p * (by_count ? cut.weight : weights.total()));
  for (size_t block = 0; block < weights.of_block.size(); ++block) {
    weights.of_block[block] = 0;
    for (int64_t i = first_of(block); i < std::min(count, first_of(block + 1)); ++i) {
      if (!cut.keeps(logits[i], i)) weights.of_token[i] = 0;
      weights.of_block[block] += weights.of_token[i];
    }
  }
}

/// The first token whose prefix sum exceeds `target`; where rounding leaves none, the last
/// possible.
int64_t find(const Weights& weights, int64_t count, double target) {
  double before = 0, current = 0;
  size_t block = 0;
  for (size_t b = 0; b < weights.of_block.size(); ++b) {
    if (weights.of_block[b] == 0) continue;
    before += current;
    current = weights.of_block[b];
    block = b;
    if (before + current > target) break;
  }
  int64_t token = 0;
  for (int64_t i = first_of(block); i < std::min(count, first_of(block + 1)); ++i) {
    if (weights.of_token[i] == 0) continue;
    token = i;
    before += weights.of_token[i];
    if (before > target) break;
  }
  return token;
}

Choice choose(float* logits, int64_t count, const Draw& draw, const SamplingRule& rule) {
  for (int64_t token : rule.banned) logits[token] = -std::numeric_limits<float>::infinity();
  const float largest = largest_logit(logits, count, draw.id);
  if (draw.temperature == 0) return {std::find(logits, logits + count, largest) - logits, 0};
  Weights weights(count);
  const double scale = std::min<double>(1 / draw.temperature, std::numeric_limits<float>::max());
  kernels::vector_kernels().exponentials(logits, count, largest, static_cast<float>(scale),
                                         weights.of_token.get(), weights.of_block.data());
  truncate(logits, count, largest, rule, weights);
  const double total = weights.total();
  const int64_t token = find(weights, count, uniform(draw.id) * total);
  return {token, static_cast<float>(std::log(weights.of_token[token] / total))};
}

}  // namespace

std::vector<Choice> choose_tokens(const kernels::Context& context, const at::Tensor& logits,
                                  const std::vector<Draw>& draws, const SamplingRule& rule) {
  kernels::require(
      logits.dim() == 2 && logits.is_contiguous() && logits.scalar_type() == at::kFloat,
      "choose_tokens: logits are not a float32 matrix");
  const int64_t vocabulary = logits.size(1);
  auto* const data = logits.mutable_data_ptr<float>();
  std::vector<Choice> choices(draws.size());
  kernels::for_tiles(context, static_cast<int64_t>(draws.size()), [&](int64_t i) {
    choices[i] = choose(data + draws[i].row * vocabulary, vocabulary, draws[i], rule);
  });
  return choices;
}

}  // namespace selfcal
