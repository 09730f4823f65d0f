#include "stages/solve/cholesky.hpp"

#include <ATen/ATen.h>

#include <algorithm>
#include <array>
#include <limits>
#include <utility>

#include "stages/kernels/cpu/tiles.hpp"
#include "stages/solve/lapack.hpp"

namespace selfcal {
namespace {

/// Tiles of so many rows up to the diagonal.
int64_t triangle(int64_t rows) { return rows * (rows + 1) / 2; }

}  // namespace

template <class T>
Cholesky<T>::Cholesky(int64_t n, const Entries& entries, const kernels::Context& context,
                      FactorTeam team)
    : n_(n),
      rows_(kernels::ceil_divide(n, tile)),
      context_(context),
      team_(std::move(team)),
      kernels_(lanes::kernels()),
      panels_size_(kernels::ceil_divide(tile, kernels_.panel_columns) * kernels_.panel_columns *
                   tile),
      panels_(at::empty({triangle(rows_), panels_size_}, c10::CppTypeToScalarType<T>::value)),
      diagonal_(n) {
  read(entries);
  for (int64_t row = 0; row < rows_; ++row) {
    pack(row);
    share(row, 0, row);
    const std::vector<int64_t> below = own_strips(row + 1);
    // The diagonal first: it takes longest.
    kernels::for_tiles(context_, std::ssize(below) + 1, [&](int64_t i) {
      if (i > 0) return subtract_earlier(row, 0, strip_at(below[i - 1]));
      if (team_.owns(row)) factorise_diagonal(row);
    });
    share(row, row, 1);
    if (*panels_at(row, row) == 0) return;  // no inverse has a zero on its diagonal
    kernels::for_tiles(context_, std::ssize(below), [&](int64_t i) {
      for (T* lanes : strip_at(below[i])) divide_by_diagonal(row, lanes + row * tile * lanes::rows);
    });
  }
  remainder_.reset();
  succeeded_ = true;
}

/// Where the strips of this rank's rows of tiles begin, from a row of tiles on.
template <class T>
std::vector<int64_t> Cholesky<T>::own_strips(int64_t row) const {
  std::vector<int64_t> strips;
  for (; row < rows_; ++row)
    for (int64_t i = row * tile; team_.owns(row) && i < row * tile + size_of(row); i += strip)
      strips.push_back(i);
  return strips;
}

/// The halves of a strip of what is left of A, each [columns][32 rows].
template <class T>
auto Cholesky<T>::strip_at(int64_t first) const -> Halves {
  // Before it: every size-th row of tiles, from this rank's first on.
  const int64_t row = first / tile, earlier = row / team_.size,
                tiles = team_.size * triangle(earlier - 1) + earlier * (team_.rank + 1),
                size = width_of(row) * lanes::rows;
  T* half = remainder_.template mutable_data_ptr<T>() + tiles * tile * tile +
            first % tile / lanes::rows * size;
  return {half, half + size};
}

template <class T>
T* Cholesky<T>::panels_at(int64_t row, int64_t column) const {
  return panels_.template mutable_data_ptr<T>() + (triangle(row) + column) * panels_size_;
}

template <class T>
void Cholesky<T>::read(const Entries& entries) {
  int64_t tiles = 0;
  for (int64_t row = team_.rank; row < rows_; row += team_.size) tiles += row + 1;
  remainder_ = at::empty({tiles, tile, tile}, c10::CppTypeToScalarType<T>::value);
  const std::vector<int64_t> strips = own_strips(0);
  kernels::for_tiles(context_, std::ssize(strips), [&](int64_t task) {
    const int64_t first = strips[task], columns = width_of(first / tile);
    const Halves halves = strip_at(first);
    if (first + strip > n_)  // lanes without a row
      for (T* lanes : halves) std::fill_n(lanes, columns * lanes::rows, T(0));
    const auto lane = [&](int64_t i) {
      return halves[(i - first) / lanes::rows] + i % lanes::rows;
    };
    const int64_t end = std::min(first + strip, n_);
    for (int64_t column = 0; column < columns; column += tile)
      for (int64_t i = first; i < end; ++i)
        entries(i, column, std::min(tile, columns - column), lane(i) + column * lanes::rows,
                lanes::rows);
    for (int64_t i = first; i < end; ++i) diagonal_[i] = lane(i)[i * lanes::rows];
  });
}

/// The row of L left of the diagonal as panels.
template <class T>
void Cholesky<T>::pack(int64_t row) {
  if (!team_.owns(row)) return;
  const int64_t width = kernels_.panel_columns;
  kernels::for_tiles(context_, row, [&](int64_t column) {
    T* panels = panels_at(row, column);
    for (int64_t i = 0; i < size_of(row); ++i) {
      const T* from = strip_at(row * tile + i / strip * strip)[i % strip / lanes::rows] +
                      column * tile * lanes::rows + i % lanes::rows;
      T* into = panels + i / width * width * tile + i % width;
      for (int64_t k = 0; k < tile; ++k) into[k * width] = from[k * lanes::rows];
    }
  });
}

/// Panels of `count` tiles of a row from its rank to all.
template <class T>
void Cholesky<T>::share(int64_t row, int64_t first, int64_t count) const {
  if (team_.size == 1 || count == 0) return;
  const std::span panels(panels_at(row, first), static_cast<size_t>(count * panels_size_));
  team_.broadcast(std::as_writable_bytes(panels), team_.owner_of(row));
}

/// What the columns from tile `first` on take off those of tile `row`: L[row] times them. Halves
/// begin at tile `first`, or with the first column where that is 0.
template <class T>
void Cholesky<T>::subtract_earlier(int64_t row, int64_t first, const Halves& halves) const {
  constexpr int64_t step = tile * lanes::rows;
  for (int64_t column = first; column < row; ++column)
    for (T* lanes : halves)
      subtract(panels_at(row, column), tile, size_of(row), lanes + (column - first) * step,
               lanes + (row - first) * step);
}

/// And keeps its inverse, if it is positive definite, with the sign changed: products are
/// subtracted.
template <class T>
void Cholesky<T>::factorise_diagonal(int64_t row) {
  const int64_t size = size_of(row), first = row * tile, width = kernels_.panel_columns;
  std::vector<T> corner(size * size), inverse(size * size);
  for (int64_t i = 0; i < size; i += strip) {
    const Halves halves = strip_at(first + i);
    subtract_earlier(row, 0, halves);
    for (int64_t k = i; k < std::min(i + strip, size); ++k)
      for (int64_t column = 0; column <= k; ++column)
        corner[k * size + column] =
            halves[(k - i) / lanes::rows][(first + column) * lanes::rows + k % lanes::rows];
  }
  T* panels = panels_at(row, row);
  *panels = 0;
  if (!lapack::factorise<T>(size, corner.data(), size)) return;
  for (int64_t k = 0; k < size; ++k) {
    const T pivot = corner[k * (size + 1)];
    if (!(pivot * pivot > 8 * std::numeric_limits<T>::epsilon() * diagonal_[first + k])) return;
  }
  lapack::invert<T>(size, corner.data(), size, inverse.data());
  for (int64_t i = 0; i < size; ++i)
    for (int64_t k = 0; k < tile; ++k)
      panels[(i / width * tile + k) * width + i % width] = k <= i ? -inverse[i * size + k] : 0;
}

/// columns = L[row, row]^-1 columns, [size of the row][32].
template <class T>
void Cholesky<T>::divide_by_diagonal(int64_t row, T* columns) const {
  const int64_t size = size_of(row), width = kernels_.panel_columns;
  std::array<T, tile * lanes::rows> given;
  std::copy_n(columns, size * lanes::rows, given.data());
  std::fill_n(columns, size * lanes::rows, T(0));
  for (int64_t i = 0; i < size; i += width)  // down to the diagonal
    subtract(panels_at(row, row) + i * tile, std::min(i + width, size), std::min(width, size - i),
             given.data(), columns + i * lanes::rows);
}

template <class T>
void Cholesky<T>::subtract(const T* panels, int64_t depth, int64_t columns, const T* other,
                           T* into) const {
  if constexpr (std::is_same_v<T, float>)
    kernels_.subtract_products(panels, depth, columns, other, into);
  else
    kernels_.subtract_products_double(panels, depth, columns, other, into);
}

template <class T>
void Cholesky<T>::invert_strip(int64_t first, int64_t count, float* rows, int64_t stride) const {
  const int64_t top = first / tile, above = top * tile, size = (n_ - above) * lanes::rows;
  std::vector<T> inverse(2 * size);
  const Halves halves{inverse.data(), inverse.data() + size};
  const auto lane = [&](int64_t k) { return halves[k / lanes::rows] + k % lanes::rows; };
  for (int64_t k = 0; k < count; ++k) lane(k)[(first + k - above) * lanes::rows] = 1;
  for (int64_t row = top; row < rows_; ++row) {
    subtract_earlier(row, top, halves);
    for (T* lanes : halves) divide_by_diagonal(row, lanes + (row - top) * tile * lanes::rows);
  }
  for (int64_t i = first; i < n_; ++i) {
    float* row = rows + (n_ - 1 - i) * stride;
    const int64_t filled = std::min(i + 1 - first, count);
    std::fill_n(row, count - filled, 0.0f);
    for (int64_t k = 0; k < filled; ++k)
      row[count - 1 - k] = float(lane(k)[(i - above) * lanes::rows]);
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
