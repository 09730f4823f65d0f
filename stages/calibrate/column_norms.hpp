// The root mean square of each column over the leaves of a calibration set, with the same bits for
// any dealing of leaves to ranks and any order: where no Hessian is needed.
#pragma once
#include <ATen/core/Tensor.h>

#include <cstdint>
#include <span>
#include <vector>

#include "stages/kernels/ops.hpp"

namespace selfcal {

/// add() every leaf, once; all_reduce(max) exponents(); count(); all_reduce(sum) sums(); finish().
/// A leaf's sums are float64, over the tokens in order. With 2^h_i above column i's in any
/// leaf, each is rounded to a unit of 2^(h_i - 45): 2^17 leaves fit in 63 bits.
class ColumnNorms {
 public:
  ColumnNorms(int64_t columns, kernels::Context context);

  /// x: [tokens, columns], float32 or bfloat16, contiguous: a whole leaf. Not finite:
  /// ExitCode::data.
  void add(const at::Tensor& x);
  std::span<int32_t> exponents() { return exponents_; }
  /// Turns the leaves' sums into whole numbers, once the exponents are those of all ranks.
  void count();
  std::span<int64_t> sums() { return sums_; }
  /// float32 [columns]. `tokens`: of all leaves of all ranks.
  at::Tensor finish(int64_t tokens) const;

 private:
  int64_t columns_;
  kernels::Context context_;
  std::vector<std::vector<double>> leaves_;  // sum of squares of each column
  std::vector<int32_t> exponents_;
  std::vector<int64_t> sums_;
};

}  // namespace selfcal
