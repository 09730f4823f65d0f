#include "stages/solve/layer_sparsity.hpp"

#include <ATen/ATen.h>

#include <algorithm>
#include <array>
#include <cmath>

#include "stages/kernels/cpu/tiles.hpp"

namespace selfcal {
namespace {

/// Calls visit(first score of a row's chunk, scores) for chunks of a weight's scores, in order.
template <class Visit>
void for_scores(const at::Tensor& weight, const at::Tensor& norms, const Visit& visit) {
  constexpr int64_t chunk = 256;
  const int64_t rows = weight.size(0), columns = weight.size(1);
  const float* norm = norms.const_data_ptr<float>();
  kernels::with_element(weight, [&](auto element) {
    std::array<float, chunk> scores;
    const auto* data = weight.const_data_ptr<decltype(element)>();
    for (int64_t row = 0; row < rows; ++row)
      for (int64_t first = 0; first < columns; first += chunk) {
        const int64_t count = std::min(chunk, columns - first);
        const auto* from = data + row * weight.stride(0) + first;
        for (int64_t i = 0; i < count; ++i) scores[i] = std::abs(float(from[i])) * norm[first + i];
        visit(scores.data(), count);
      }
  });
}

}  // namespace

double sum_of_scores(const at::Tensor& weight, const at::Tensor& norms) {
  constexpr int64_t lanes = 16;  // sums side by side, for vector units
  std::array<double, lanes> sums{};
  for_scores(weight, norms, [&](const float* scores, int64_t count) {
    int64_t i = 0;
    for (; i + lanes <= count; i += lanes)
      for (int64_t lane = 0; lane < lanes; ++lane) sums[lane] += double(scores[i + lane]);
    for (; i < count; ++i) sums[i % lanes] += double(scores[i]);
  });
  double sum = 0;
  for (const double lane : sums) sum += lane;
  return sum;
}

int64_t scores_above(const at::Tensor& weight, const at::Tensor& norms, double threshold) {
  int64_t above = 0;
  for_scores(weight, norms, [&](const float* scores, int64_t count) {
    for (int64_t i = 0; i < count; ++i) above += double(scores[i]) > threshold;
  });
  return above;
}

std::vector<double> owl_sparsity(const std::vector<OutlierCount>& blocks, double target,
                                 double lambda) {
  double least = 1, most = 0, all = 0;
  for (const auto& block : blocks) {
    if (block.entries == 0) continue;
    least = std::min(least, block.ratio());
    most = std::max(most, block.ratio());
    all += double(block.entries);
  }
  std::vector<double> sparsity(blocks.size(), target);
  if (!(most > least)) return sparsity;
  const auto kept_more = [&](const OutlierCount& block) {
    return 2 * lambda * (block.ratio() - least) / (most - least);
  };
  double mean = 0;
  for (const auto& block : blocks)
    if (block.entries > 0) mean += kept_more(block) * double(block.entries) / all;
  for (size_t i = 0; i < blocks.size(); ++i)
    if (blocks[i].entries > 0) sparsity[i] = target + mean - kept_more(blocks[i]);
  return sparsity;
}

}  // namespace selfcal
