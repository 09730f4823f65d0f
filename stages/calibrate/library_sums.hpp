// The exact sums of HessianAccumulator by the tensor library, in the memory where the leaves are.
#pragma once
#include <ATen/core/Tensor.h>

#include <cstdint>
#include <span>
#include <vector>

namespace selfcal {

class LibrarySums {
 public:
  static constexpr int64_t rows_of_a_block = 1024;  // bounds the memory of products

  LibrarySums(int64_t columns, at::Device memory);

  /// Sums of the squares of each column, in float64. x: [tokens, columns], float32 or bfloat16.
  static std::vector<double> squares_of_columns(const at::Tensor& x);

  /// Adds the float32 products of the columns of a leaf, each rounded to an integer in units of
  /// 2^(h_i + h_j - bits), h the exponents. x: [tokens, columns], contiguous.
  void add(const at::Tensor& x, std::span<const int32_t> exponents, int bits);

  /// The sums as they are now, int64: for reductions in place. Every rank's have the same shapes.
  std::span<const at::Tensor> blocks() const { return blocks_; }

  /// sum / tokens, float32 [columns, columns], symmetric, where the sums are: the bits that
  /// HessianAccumulator::finish() finds on the host. Exponents and bits as in add().
  at::Tensor mean(std::span<const int32_t> exponents, int bits, int64_t tokens) const;

  /// Adds the entries (first + r, j), r below `rows`, j from `first` on, to into[(j - first) * rows
  /// + r].
  void read(int64_t first, int64_t rows, int64_t* into) const;

 private:
  int64_t columns_;
  std::vector<at::Tensor> blocks_;  // of rows, each from its first column on
};

}  // namespace selfcal
