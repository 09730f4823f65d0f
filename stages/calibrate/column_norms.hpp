// The root mean square of each column over the leaves of a calibration set, with the same bits for
// any dealing of leaves to ranks and any order: where no Hessian is needed.
#pragma once
#include <ATen/core/Tensor.h>

#include <cstdint>
#include <span>
#include <vector>

#include "stages/calibrate/exact_sums.hpp"
#include "stages/kernels/ops.hpp"

namespace selfcal {

/// add() every leaf, once; all_reduce(max) exponents(); count(); all_reduce(sum) sums(); finish().
/// A leaf's sums are float64, over the tokens in order.
class ColumnNorms {
 public:
  ColumnNorms(int64_t columns, kernels::Context context);

  /// x: [tokens, columns], float32 or bfloat16, contiguous: a whole leaf. Not finite:
  /// ExitCode::data.
  void add(const at::Tensor& x);
  std::span<int32_t> exponents() { return sums_.exponents(); }
  void count() { sums_.count(); }
  std::span<int64_t> sums() { return sums_.sums(); }
  /// float32 [columns]. `tokens`: of all leaves of all ranks.
  at::Tensor finish(int64_t tokens) const;

 private:
  int64_t columns_;
  kernels::Context context_;
  ExactSums sums_;  // of squares
};

}  // namespace selfcal
