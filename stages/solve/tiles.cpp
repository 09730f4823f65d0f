#include "stages/solve/tiles.hpp"

#include <ATen/ATen.h>

#include <algorithm>
#include <utility>

#include "base/error.hpp"
#include "stages/kernels/cpu/matrix.hpp"

namespace selfcal {
namespace {

constexpr int64_t run = 64;  // columns moved at a time: a few cache lines of a row

/// Calls body with a value of a float dtype.
template <class Body>
void with_float(at::ScalarType dtype, const Body& body) {
  switch (dtype) {
    case at::kFloat:
      return body(float{});
    case at::kBFloat16:
      return body(at::BFloat16{});
    case at::kHalf:
      return body(at::Half{});
    case at::kDouble:
      return body(double{});
    default:
      fail(ExitCode::internal, "weights of dtype {}, expected floating point", toString(dtype));
  }
}

template <class Into>
void store_tile(const float* tile, int64_t count, int64_t columns, Into* rows) {
  for (int64_t first = 0; first < columns; first += run) {
    const int64_t last = std::min(first + run, columns);
    for (int64_t row = 0; row < count; ++row) {
      for (int64_t j = first; j < last; ++j)
        rows[row * columns + j] = Into(tile[j * lanes::rows + row]);
    }
  }
}

template <class Into>
void store_all(const at::Tensor& tiles, at::Tensor& matrix, int64_t first, int64_t count) {
  const int64_t columns = matrix.size(1);
  const float* tile = tiles.const_data_ptr<float>();
  Into* rows = matrix.mutable_data_ptr<Into>() + first * columns;
  for (int64_t row = 0; row < count; row += lanes::rows, tile += columns * lanes::rows) {
    store_tile(tile, std::min(lanes::rows, count - row), columns, rows + row * columns);
  }
}

/// The i-th move of each tile's columns goes [from, into] move(i).
template <class Move>
at::Tensor move_columns(const at::Tensor& tiles, const Move& move) {
  at::Tensor moved = at::empty_like(tiles);
  const int64_t columns = tiles.size(1);
  const float* from = tiles.const_data_ptr<float>();
  float* into = moved.mutable_data_ptr<float>();
  for (int64_t tile = 0; tile < tiles.size(0); ++tile) {
    for (int64_t i = 0; i < columns; ++i) {
      const auto [source, target] = move(i);
      std::copy_n(from + source * lanes::rows, lanes::rows, into + target * lanes::rows);
    }
    from += columns * lanes::rows;
    into += columns * lanes::rows;
  }
  return moved;
}

}  // namespace

at::Tensor load_tiles(const at::Tensor& weight, int64_t first, int64_t count) {
  const int64_t columns = weight.size(1), tiles = tiles_of(count);
  at::Tensor rows = weight.narrow(0, first, count).contiguous();
  if (rows.scalar_type() != at::kBFloat16) rows = rows.to(at::kFloat);
  if (!kernels::all_finite({}, rows)) fail(ExitCode::data, "weight not finite");
  const kernels::VectorKernels& vectors = kernels::vector_kernels();
  // (Whole vectors of columns are written: past those of the last tile there is room for one.)
  const at::Tensor room = at::empty({(tiles * columns + vectors.width) * lanes::rows}, at::kFloat);
  for (int64_t tile = 0; tile < tiles; ++tile) {
    const int64_t row = tile * lanes::rows;
    const auto part = kernels::matrix_of(rows.narrow(0, row, std::min(lanes::rows, count - row)));
    vectors.transpose(part, lanes::rows, 0, columns,
                      room.mutable_data_ptr<float>() + row * columns);
  }
  return room.narrow(0, 0, tiles * columns * lanes::rows).view({tiles, columns, lanes::rows});
}

void store_tiles(const at::Tensor& tiles, at::Tensor& matrix, int64_t first, int64_t count) {
  if (matrix.scalar_type() == at::kByte) return store_all<uint8_t>(tiles, matrix, first, count);
  with_float(matrix.scalar_type(),
             [&](auto element) { store_all<decltype(element)>(tiles, matrix, first, count); });
}

at::Tensor gather_columns(const at::Tensor& tiles, const at::Tensor& permutation) {
  const auto* column = permutation.const_data_ptr<int64_t>();
  return move_columns(tiles, [=](int64_t i) { return std::pair(column[i], i); });
}

at::Tensor scatter_columns(const at::Tensor& tiles, const at::Tensor& permutation) {
  const auto* column = permutation.const_data_ptr<int64_t>();
  return move_columns(tiles, [=](int64_t i) { return std::pair(i, column[i]); });
}

}  // namespace selfcal
