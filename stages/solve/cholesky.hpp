// Cholesky factor and triangular inverse by fixed tiles: our products of packed panels, the pool
// over strips, and ranks over rows of tiles, so that the bits do not depend on the number of
// either.
#pragma once
#include <ATen/core/Tensor.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "stages/kernels/ops.hpp"
#include "stages/lanes/lanes.hpp"

namespace selfcal {

/// The ranks that factorise one matrix. Each works on every `size`-th row of tiles, which costs all
/// about the same: the further down, the longer. By default one rank does it all.
struct FactorTeam {
  int rank = 0, size = 1;
  int owner_of(int64_t row) const { return static_cast<int>(row % size); }
  bool owns(int64_t row) const { return owner_of(row) == rank; }
  /// Collective: root's bytes to all.
  std::function<void(std::span<std::byte> data, int root)> broadcast = {};
};

/// A = L L^T, [n, n], left-looking: a row of tiles is packed as panels when its columns to the left
/// are done, and what lies below reads those. L's tiles on the diagonal are kept as inverses. T:
/// float or double.
template <class T>
class Cholesky {
 public:
  static constexpr int64_t tile = 128;               // rows and columns
  static constexpr int64_t strip = 2 * lanes::rows;  // rows, or columns of the inverse, of a task

  /// Writes A[row][first] ... A[row][first + count - 1], `stride` apart. Called on the threads.
  using Entries =
      std::function<void(int64_t row, int64_t first, int64_t count, T* into, int64_t stride)>;

  /// Factorises; of `entries`, the lower triangle and tiles on the diagonal, of a team's this
  /// rank's rows. Collective over the team.
  Cholesky(int64_t n, const Entries& entries, const kernels::Context& context,
           FactorTeam team = {});

  /// False where A is not positive definite, or so nearly not that a pivot lost all its digits; on
  /// all ranks of a team.
  bool succeeded() const { return succeeded_; }

  /// U = J L^-1 J, J the reversal: upper, float32 [n, n], zeros below the diagonal. With A = J B J:
  /// U^T U = J L^-T L^-1 J = B^-1.
  void invert_reversed(float* upper) const;
  /// Its columns [n - first - count, n - first), down to the diagonal: n - first rows, `stride`
  /// apart. first: a multiple of `strip`; count: `strip`, or what is left.
  void invert_strip(int64_t first, int64_t count, float* rows, int64_t stride) const;

 private:
  using Halves = std::array<T*, 2>;  // of a strip: 32 rows, or columns, side by side

  int64_t size_of(int64_t row) const { return std::min(tile, n_ - row * tile); }
  int64_t width_of(int64_t row) const { return row * tile + size_of(row); }
  std::vector<int64_t> own_strips(int64_t row) const;
  Halves strip_at(int64_t first) const;
  T* panels_at(int64_t row, int64_t column) const;

  void read(const Entries& entries);
  void pack(int64_t row);
  void share(int64_t row, int64_t first, int64_t count) const;
  void factorise_diagonal(int64_t row);
  void subtract_earlier(int64_t row, int64_t first, const Halves& halves) const;
  void divide_by_diagonal(int64_t row, T* columns) const;
  void subtract(const T* panels, int64_t depth, int64_t columns, const T* other, T* into) const;

  int64_t n_, rows_;  // of tiles
  kernels::Context context_;
  FactorTeam team_;
  const lanes::Kernels& kernels_;
  int64_t panels_size_;  // of a tile
  // Row of tiles after row, up to the diagonal: what is left of A, 32 rows side by side, of this
  // rank's rows; and L as panels.
  at::Tensor remainder_, panels_;
  std::vector<T> diagonal_;  // of A
  bool succeeded_ = false;
};

}  // namespace selfcal
