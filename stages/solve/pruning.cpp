#include "stages/solve/pruning.hpp"

#include <ATen/ATen.h>

#include <algorithm>

namespace selfcal {
namespace {

/// kept = 0 for the `pruned` lowest of a row's scores; columns lie lanes::rows apart.
void keep_best_of_row(const float* scores, int64_t columns, int64_t pruned, float* kept,
                      std::vector<float>& sorted) {
  sorted.resize(static_cast<size_t>(columns));
  for (int64_t j = 0; j < columns; ++j) sorted[static_cast<size_t>(j)] = scores[j * lanes::rows];
  std::nth_element(sorted.begin(), sorted.begin() + pruned, sorted.end());
  const float limit = sorted[static_cast<size_t>(pruned)];  // the lowest that may stay
  int64_t equal = pruned - std::count_if(sorted.begin(), sorted.begin() + pruned,
                                         [&](float score) { return score < limit; });
  for (int64_t j = 0; j < columns; ++j) {
    const float score = scores[j * lanes::rows];
    const bool goes = score < limit || (score == limit && equal-- > 0);
    kept[j * lanes::rows] = goes ? 0.0f : 1.0f;
  }
}

}  // namespace

TileSolution prune_by_magnitude(const at::Tensor& tiles, const at::Tensor& norms,
                                const Sparsity& sparsity, const lanes::Kernels& kernels) {
  const int64_t columns = tiles.size(1);
  at::Tensor scores = tiles.abs();
  if (norms.defined()) scores.mul_(norms.view({1, columns, 1}));
  at::Tensor kept = at::empty_like(tiles);
  const int64_t pruned = static_cast<int64_t>(static_cast<double>(columns) * sparsity.share);
  std::vector<float> sorted;
  for (int64_t i = 0; i < tiles.size(0); ++i) {
    const float* from = scores.const_data_ptr<float>() + i * columns * lanes::rows;
    float* into = kept.mutable_data_ptr<float>() + i * columns * lanes::rows;
    if (sparsity.pattern.of > 0) {
      kernels.keep_best(from, columns, sparsity.pattern, into);
      continue;
    }
    for (int64_t row = 0; row < lanes::rows; ++row)
      keep_best_of_row(from + row, columns, pruned, into + row, sorted);
  }
  TileSolution solution;
  solution.weight = at::mul(tiles, kept).add_(0.0f);  // (the sum turns -0 into 0)
  solution.kept = kept;
  return solution;
}

}  // namespace selfcal
