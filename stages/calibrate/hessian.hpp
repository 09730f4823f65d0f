// X^T X summed over the leaves of a calibration set, with the same bits for any dealing of leaves to ranks and any order.
#pragma once
#include <ATen/core/Tensor.h>

#include <cstdint>
#include <span>

#include "stages/kernels/ops.hpp"

namespace selfcal {

/// Two passes. observe() every leaf; all_reduce(max) exponents() over the team; add() every leaf; reduce(sum) sums();
/// finish() on the owner. A leaf's product is float32; each entry is then an integer scaled by its columns' exponents,
/// so that sums are exact and order does not matter.
class HessianAccumulator {
 public:
  HessianAccumulator(int64_t columns, kernels::Context context);

  /// x: [tokens, columns], float32 or bfloat16, contiguous: a whole leaf. Not finite: ExitCode::data.
  void observe(const at::Tensor& x);
  std::span<int32_t> exponents();
  void add(const at::Tensor& x);
  /// Upper triangle; every rank's has the same length.
  std::span<int64_t> sums();
  /// H = sum / tokens, float32 [columns, columns], symmetric. `tokens`: of all leaves of all ranks.
  at::Tensor finish(int64_t tokens) const;
};

}  // namespace selfcal
