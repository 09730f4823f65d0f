// The exact sums of HessianAccumulator by the tensor library, in the memory where the leaves are.
#pragma once
#include <ATen/core/Tensor.h>

#include <cstdint>
#include <span>
#include <vector>

namespace selfcal {

class LibrarySums {
 public:
  LibrarySums(int64_t columns, at::Device memory);

  /// Sums of the squares of each column, in float64. x: [tokens, columns], float32 or bfloat16.
  static std::vector<double> squares_of_columns(const at::Tensor& x);

  /// Adds the float32 products of the columns of a leaf, each rounded to an integer in units of
  /// 2^(h_i + h_j - bits), h the exponents. x: [tokens, columns], contiguous.
  void add(const at::Tensor& x, std::span<const int32_t> exponents, int bits);

  /// Adds the entries (first + r, j), r below `rows`, j from `first` on, to into[(j - first) * rows
  /// + r].
  void read(int64_t first, int64_t rows, int64_t* into) const;

 private:
  at::Tensor sums_;  // int64 [columns, columns]; on and above the blocks' diagonal
};

}  // namespace selfcal
