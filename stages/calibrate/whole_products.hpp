// Products of the columns of a leaf as whole numbers: each column in units of 2^(h - 15), h the
// exponent of its norm over any leaf, to the nearest 16-bit number. Sums over a leaf are then exact
// and stay in 32 bits (Cauchy-Schwarz).
#pragma once
#include <ATen/core/Tensor.h>

#include <span>

#include "stages/kernels/ops.hpp"
#include "stages/lanes/lanes.hpp"

namespace selfcal {

/// Bits that a whole number has below the exponent of its column's norm.
inline constexpr int whole_bits = 15;

class WholeProducts {
 public:
  /// x: [tokens, columns], contiguous float32 or bfloat16; exponents: one a column. Columns of norm
  /// below 2^-100 count as zeros.
  WholeProducts(const at::Tensor& x, std::span<const int32_t> exponents,
                const kernels::Context& context);

  /// Adds up the products of 32 columns from `first` on, a multiple of 32, with the columns
  /// [column, column + columns), column such a multiple too: result[j - column][32], int32, in
  /// units of 2^(h_i + h_j - 2 whole_bits). Those of columns j before i may be left out. On the
  /// calling thread.
  void add(int64_t first, int64_t column, int64_t columns, int32_t* result) const;

 private:
  int32_t* panel(int64_t column) const {
    return panels_.mutable_data_ptr<int32_t>() + column * pairs_;
  }

  int64_t panel_columns_, pairs_;
  at::Tensor panels_;  // of all columns, by pairs of tokens
};

}  // namespace selfcal
