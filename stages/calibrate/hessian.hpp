// X^T X summed over the leaves of a calibration set, with the same bits for any dealing of leaves
// to ranks and any order.
#pragma once
#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <vector>

#include "stages/calibrate/leaf_products.hpp"
#include "stages/calibrate/library_sums.hpp"

namespace selfcal {

/// Two passes. observe() every leaf; all_reduce(max) exponents() over the team; add() every leaf;
/// reduce(sum) sums(); finish() on the owner. A leaf's product is float32; each entry is then
/// rounded to an integer that is scaled by its two columns' exponents, so that sums are exact and
/// order does not matter. Of bfloat16 leaves the entries of x are rounded to such integers already,
/// except where the library is tuned for the CPU (whole_products.hpp). On a device the sums grow in
/// its memory (library_sums.hpp) until sums() asks for them.
///
/// Bounds. With exponent h_i the norm of column i over any leaf is at most 2^h_i, so a leaf's entry
/// is at most 2^(h_i + h_j) (Cauchy-Schwarz); it is kept to a unit of 2^(h_i + h_j - 45). A sum of
/// n leaves is off by at most n 2^(h_i + h_j - 46), about 2^-44 of the largest leaf's |x_i||x_j| a
/// leaf, far below the float32 product's own rounding; 2^17 leaves fit in 63 bits.
class HessianAccumulator {
 public:
  /// columns >= 1; the context's pool outlives the accumulator.
  HessianAccumulator(int64_t columns, kernels::Context context);

  /// x: [tokens, columns], float32 or bfloat16, contiguous, in the device's memory: a whole leaf.
  /// Independent. Not finite, or too large for float32 products: ExitCode::data.
  void observe(const at::Tensor& x);
  /// One a column; -160 where no leaf had an entry that is not zero.
  std::span<int32_t> exponents() { return exponents_; }
  /// The same leaves again, once the exponents are those of all ranks and before sums().
  void add(const at::Tensor& x);
  /// The upper triangle by strips of 32 rows, one after the other: entry (32 s + r, j), j from 32 s
  /// on, lies at [(j - 32 s) * 32 + r] of strip s. Every rank's has the same length and meaning.
  std::span<int64_t> sums();
  /// Those that are still in the device's memory: reduced in place there, sums() then has them.
  std::span<const at::Tensor> device_sums() const {
    return on_device_ ? on_device_->blocks() : std::span<const at::Tensor>();
  }
  /// H = sum / tokens, float32 [columns, columns], symmetric, in the device's memory. `tokens`: of
  /// all leaves of all ranks.
  at::Tensor finish(int64_t tokens);

 private:
  /// Calls task(first_strip, strips, column) for runs of strips with runs of columns that cover the
  /// upper triangle.
  void for_tasks(int64_t strips_of_a_task,
                 const std::function<void(int64_t, int64_t, int64_t)>& task);
  /// Zeros, which the threads write: such memory is new, and large.
  void make_sums();
  int64_t* sums_of_strip(int64_t strip);
  void add_whole(const at::Tensor& x);
  void add_task(const LeafProducts& products, int64_t first_strip, int64_t strips, int64_t column);

  int64_t columns_;
  kernels::Context context_;
  std::vector<int32_t> exponents_;
  at::Tensor sums_;                       // none while all is in the device's memory
  std::optional<LibrarySums> on_device_;  // what sums_ still lacks
};

}  // namespace selfcal
