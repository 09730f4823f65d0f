// Mean |x| of each column over the leaves of a calibration set (AWQ), with the same bits for any
// dealing of leaves to ranks and any order.
#pragma once
#include <ATen/core/Tensor.h>

#include <cstdint>
#include <span>
#include <vector>

#include "stages/kernels/ops.hpp"

namespace selfcal {

/// add() every leaf; reduce(sum) sums(); finish(). A leaf's sum is taken in float64 over the tokens
/// in order, then rounded to a unit of 2^(h - 40), h the column's exponent of HessianAccumulator: a
/// leaf of T tokens adds at most sqrt(T) 2^40, so 2^12 leaves of a million tokens fit.
class MagnitudeAccumulator {
 public:
  /// exponents: those of all ranks, one a column; borrowed.
  MagnitudeAccumulator(std::span<const int32_t> exponents, kernels::Context context)
      : exponents_(exponents), context_(context), sums_(exponents.size()) {}

  /// x: [tokens, columns], float32 or bfloat16, contiguous: a whole leaf.
  void add(const at::Tensor& x);
  std::span<int64_t> sums() { return sums_; }
  /// float32 [columns]. `tokens`: of all leaves of all ranks.
  at::Tensor finish(int64_t tokens) const;

 private:
  std::span<const int32_t> exponents_;
  kernels::Context context_;
  std::vector<int64_t> sums_;
};

}  // namespace selfcal
