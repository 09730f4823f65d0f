// Cholesky factor and triangular inverse by fixed tiles: library calls on one thread, the pool over
// the tiles, and ranks over rows of tiles, so that the bits do not depend on the number of either.
#pragma once
#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "stages/kernels/ops.hpp"

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

/// A = L L^T, row-major [n, n], with the inverses of L's diagonal tiles. T: float or double.
template <class T>
class Cholesky {
 public:
  static constexpr int64_t tile = 128;  // rows and columns
  static constexpr int64_t strip = 64;  // columns of the inverse in one task

  /// Factorises in place; only the lower triangle of `matrix` is read and written, of a team's this
  /// rank's rows: those of the others come to every rank, all but their tiles on the diagonal.
  /// Collective over the team.
  Cholesky(T* matrix, int64_t n, const kernels::Context& context, FactorTeam team = {});

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
  int64_t size_at(int64_t first) const { return first + tile < n_ ? tile : n_ - first; }
  T* inverse_at(int64_t first) { return inverses_.data() + first * tile; }
  const T* inverse_at(int64_t first) const { return inverses_.data() + first * tile; }

  void for_own_tiles(int64_t first, const std::function<void(int64_t)>& body) const;
  void share_row(int64_t j, std::span<T> room);
  void share_inverse(int64_t j);
  void subtract_earlier(int64_t i, int64_t j);
  void factorise_diagonal(int64_t j, const std::vector<T>& diagonal);
  void divide_by_diagonal(int64_t i, int64_t j);
  std::vector<T> inverse_strip(int64_t top, int64_t first, int64_t count) const;

  T* matrix_;
  int64_t n_;
  kernels::Context context_;
  FactorTeam team_;
  std::vector<T> inverses_;  // of the diagonal tiles, [tiles][128][128]
  bool succeeded_ = false;
};

}  // namespace selfcal
