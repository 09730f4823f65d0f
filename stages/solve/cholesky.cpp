#include "stages/solve/cholesky.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "stages/kernels/cpu/tiles.hpp"
#include "stages/solve/blas.hpp"

namespace selfcal {
namespace {

constexpr int64_t tile = 128;
constexpr int64_t strip = 64;  // columns of the inverse in one task

int64_t tile_size(int64_t n, int64_t first) { return std::min(tile, n - first); }

/// A[i, j] -= L[i, :j] L[j, :j]^T: what the columns before j take off a tile.
template <class T>
void subtract_earlier(T* a, int64_t n, int64_t i, int64_t j) {
  if (j == 0) return;
  // Column-major sees the transposes: C^T -= L_j L_i^T.
  blas::gemm<T>('T', 'N', tile_size(n, j), tile_size(n, i), j, T(-1), a + j * n, n, a + i * n, n,
                T(1), a + i * n + j, n);
}

template <class T>
bool factorise_diagonal(T* a, int64_t n, int64_t j, const std::vector<T>& diagonal) {
  if (!blas::potrf<T>('U', tile_size(n, j), a + j * (n + 1), n)) return false;
  for (int64_t k = j; k < j + tile_size(n, j); ++k) {
    const T pivot = a[k * (n + 1)];
    if (!(pivot * pivot > 8 * std::numeric_limits<T>::epsilon() * diagonal[k])) return false;
  }
  return true;
}

/// Strip [first, first + count) of columns of L^-1, rows from `top` (the strip's tile) on: x [n -
/// top, count].
template <class T>
void invert_strip(const T* lower, int64_t n, int64_t top, int64_t first, int64_t count, T* x) {
  std::fill_n(x, (n - top) * count, T(0));
  for (int64_t k = 0; k < count; ++k) x[(first - top + k) * count + k] = 1;
  for (int64_t i = top; i < n; i += tile) {
    T* rows = x + (i - top) * count;
    if (i > top) {
      blas::gemm<T>('N', 'N', count, tile_size(n, i), i - top, T(-1), x, count, lower + i * n + top,
                    n, T(1), rows, count);
    }
    blas::trsm<T>('R', 'U', 'N', count, tile_size(n, i), lower + i * (n + 1), n, rows, count);
  }
}

}  // namespace

template <class T>
bool factorise_lower(T* matrix, int64_t n, const kernels::Context& context) {
  std::vector<T> diagonal(n);
  for (int64_t k = 0; k < n; ++k) diagonal[k] = matrix[k * (n + 1)];
  for (int64_t j = 0; j < n; j += tile) {
    const int64_t below = kernels::ceil_divide(n - j, tile);
    kernels::for_tiles(context, below,
                       [&](int64_t i) { subtract_earlier(matrix, n, j + i * tile, j); });
    if (!factorise_diagonal(matrix, n, j, diagonal)) return false;
    kernels::for_tiles(context, below - 1, [&](int64_t i) {
      const int64_t row = j + (i + 1) * tile;
      blas::trsm<T>('L', 'U', 'T', tile_size(n, j), tile_size(n, row), matrix + j * (n + 1), n,
                    matrix + row * n + j, n);
    });
  }
  return true;
}

template <class T>
void invert_reversed(const T* lower, int64_t n, float* upper, const kernels::Context& context) {
  kernels::for_tiles(context, kernels::ceil_divide(n, strip), [&](int64_t index) {
    const int64_t first = index * strip, count = std::min(strip, n - first),
                  top = first / tile * tile;
    std::vector<T> x((n - top) * count);
    invert_strip(lower, n, top, first, count, x.data());
    for (int64_t i = 0; i < n; ++i) {
      for (int64_t k = 0; k < count; ++k) {
        const T value = i < first + k ? T(0) : x[(i - top) * count + k];
        upper[(n - 1 - i) * n + (n - 1 - first - k)] = float(value);
      }
    }
  });
}

template bool factorise_lower(float*, int64_t, const kernels::Context&);
template bool factorise_lower(double*, int64_t, const kernels::Context&);
template void invert_reversed(const float*, int64_t, float*, const kernels::Context&);
template void invert_reversed(const double*, int64_t, float*, const kernels::Context&);

}  // namespace selfcal
