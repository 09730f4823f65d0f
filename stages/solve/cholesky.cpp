#include "stages/solve/cholesky.hpp"

#include <algorithm>
#include <limits>
#include <utility>

#include "stages/kernels/cpu/tiles.hpp"
#include "stages/solve/blas.hpp"

namespace selfcal {
namespace {

/// inverse = lower^-1, [n, n], both triangular; what lies above the diagonal of `inverse` is left
/// alone.
template <class T>
void invert_small(const T* lower, int64_t stride, int64_t n, T* inverse, int64_t inverse_stride) {
  for (int64_t j = 0; j < n; ++j) {
    for (int64_t i = j; i < n; ++i) {
      T sum = i == j ? T(1) : T(0);
      for (int64_t k = j; k < i; ++k)
        sum -= lower[i * stride + k] * inverse[k * inverse_stride + j];
      inverse[i * inverse_stride + j] = sum / lower[i * stride + i];
    }
  }
}

/// By halves: [A 0; B C]^-1 = [A^-1 0; -C^-1 B A^-1, C^-1]. `inverse` starts as zeros.
template <class T>
void invert_lower(const T* lower, int64_t stride, int64_t n, T* inverse, int64_t inverse_stride) {
  constexpr int64_t small = 16;
  if (n <= small) return invert_small(lower, stride, n, inverse, inverse_stride);
  const int64_t half = (n / 2 + small - 1) / small * small, rest = n - half;
  T* corner = inverse + half * inverse_stride;
  T* below = corner + half;
  invert_lower(lower, stride, half, inverse, inverse_stride);
  invert_lower(lower + half * (stride + 1), stride, rest, below, inverse_stride);
  std::vector<T> product(rest * half);
  blas::multiply<T>(rest, half, half, 1, lower + half * stride, stride, inverse, inverse_stride, 0,
                    product.data(), half);
  blas::multiply<T>(rest, half, rest, -1, below, inverse_stride, product.data(), half, 0, corner,
                    inverse_stride);
}

}  // namespace

template <class T>
Cholesky<T>::Cholesky(T* matrix, int64_t n, const kernels::Context& context, FactorTeam team)
    : matrix_(matrix),
      n_(n),
      context_(context),
      team_(std::move(team)),
      inverses_(kernels::ceil_divide(n, tile) * tile * tile) {
  std::vector<T> diagonal(n), room(team_.size > 1 ? tile * n : 0);
  for_own_tiles(0, [&](int64_t i) {
    for (int64_t k = i; k < i + size_at(i); ++k) diagonal[k] = matrix[k * (n + 1)];
  });
  for (int64_t j = 0; j < n; j += tile) {
    share_row(j, room);
    for_own_tiles(j, [&](int64_t i) { subtract_earlier(i, j); });
    if (team_.owns(j / tile)) factorise_diagonal(j, diagonal);
    share_inverse(j);
    if (*inverse_at(j) == 0) return;  // no inverse has a zero on its diagonal
    for_own_tiles(j + tile, [&](int64_t i) { divide_by_diagonal(i, j); });
  }
  succeeded_ = true;
}

/// Calls body(i) for the rows of tiles from `first` on that are this rank's, on the threads.
template <class T>
void Cholesky<T>::for_own_tiles(int64_t first, const std::function<void(int64_t)>& body) const {
  const int64_t step = team_.size * tile, behind = team_.rank - team_.owner_of(first / tile),
                own = first + (behind + team_.size) % team_.size * tile;
  if (own < n_)
    kernels::for_tiles(context_, kernels::ceil_divide(n_ - own, step),
                       [&](int64_t i) { body(own + i * step); });
}

/// L[j, :j] from its rank to all, by way of `room`.
template <class T>
void Cholesky<T>::share_row(int64_t j, std::span<T> room) {
  if (team_.size == 1 || j == 0) return;
  const std::span<T> packed = room.first(size_at(j) * j);
  const bool owns = team_.owns(j / tile);
  for (int64_t row = 0; owns && row < size_at(j); ++row)
    std::copy_n(matrix_ + (j + row) * n_, j, packed.data() + row * j);
  team_.broadcast(std::as_writable_bytes(packed), team_.owner_of(j / tile));
  for (int64_t row = 0; !owns && row < size_at(j); ++row)
    std::copy_n(packed.data() + row * j, j, matrix_ + (j + row) * n_);
}

/// L[j, j]^-1, or the zeros of a failure.
template <class T>
void Cholesky<T>::share_inverse(int64_t j) {
  if (team_.size > 1)
    team_.broadcast(std::as_writable_bytes(std::span(inverse_at(j), tile * tile)),
                    team_.owner_of(j / tile));
}

/// A[i, j] -= L[i, :j] L[j, :j]^T: what the columns before j take off a tile.
template <class T>
void Cholesky<T>::subtract_earlier(int64_t i, int64_t j) {
  if (j == 0) return;
  blas::multiply_transposed<T>(size_at(i), size_at(j), j, -1, matrix_ + i * n_, n_,
                               matrix_ + j * n_, n_, 1, matrix_ + i * n_ + j, n_);
}

/// And inverts it, if it is positive definite.
template <class T>
void Cholesky<T>::factorise_diagonal(int64_t j, const std::vector<T>& diagonal) {
  T* corner = matrix_ + j * (n_ + 1);
  if (!blas::factorise<T>(size_at(j), corner, n_)) return;
  for (int64_t k = 0; k < size_at(j); ++k) {
    const T pivot = corner[k * (n_ + 1)];
    if (!(pivot * pivot > 8 * std::numeric_limits<T>::epsilon() * diagonal[j + k])) return;
  }
  invert_lower(corner, n_, size_at(j), inverse_at(j), tile);
}

/// L[i, j] = A[i, j] L[j, j]^-T.
template <class T>
void Cholesky<T>::divide_by_diagonal(int64_t i, int64_t j) {
  const int64_t rows = size_at(i), columns = size_at(j);
  std::vector<T> product(rows * columns);
  T* at = matrix_ + i * n_ + j;
  blas::multiply_transposed<T>(rows, columns, columns, 1, at, n_, inverse_at(j), tile, 0,
                               product.data(), columns);
  for (int64_t row = 0; row < rows; ++row)
    std::copy_n(product.data() + row * columns, columns, at + row * n_);
}

/// Columns [first, first + count) of L^-1, within the tile that starts at `top`: its rows from
/// there on, [n - top, count].
template <class T>
std::vector<T> Cholesky<T>::inverse_strip(int64_t top, int64_t first, int64_t count) const {
  std::vector<T> inverse((n_ - top) * count), product(tile * count);
  for (int64_t row = 0; row < size_at(top); ++row) {
    std::copy_n(inverse_at(top) + row * tile + first - top, count, inverse.data() + row * count);
  }
  for (int64_t i = top + tile; i < n_; i += tile) {
    blas::multiply<T>(size_at(i), count, i - top, -1, matrix_ + i * n_ + top, n_, inverse.data(),
                      count, 0, product.data(), count);
    blas::multiply<T>(size_at(i), count, size_at(i), 1, inverse_at(i), tile, product.data(), count,
                      0, inverse.data() + (i - top) * count, count);
  }
  return inverse;
}

template <class T>
void Cholesky<T>::invert_strip(int64_t first, int64_t count, float* rows, int64_t stride) const {
  const int64_t top = first / tile * tile;
  const std::vector<T> inverse = inverse_strip(top, first, count);
  for (int64_t i = first; i < n_; ++i) {
    float* row = rows + (n_ - 1 - i) * stride;
    const int64_t filled = std::min(i + 1 - first, count);
    std::fill_n(row, count - filled, 0.0f);
    for (int64_t k = 0; k < filled; ++k) row[count - 1 - k] = float(inverse[(i - top) * count + k]);
  }
}

template <class T>
void Cholesky<T>::invert_reversed(float* upper) const {
  kernels::for_ranges(context_, n_, strip, [&](int64_t first, int64_t count) {
    float* rows = upper + n_ - first - count;
    invert_strip(first, count, rows, n_);
    for (int64_t row = n_ - first; row < n_; ++row) std::fill_n(rows + row * n_, count, 0.0f);
  });
}

template class Cholesky<float>;
template class Cholesky<double>;

}  // namespace selfcal
