#include "stages/solve/tiles.hpp"

#include <ATen/ATen.h>

#include <algorithm>
#include <utility>

#include "base/error.hpp"
#include "stages/kernels/cpu/matrix.hpp"

namespace selfcal {
namespace {

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

/// Calls store(first row, rows, their numbers, stride) for the rows of each tile.
template <class Store>
void for_rows(const at::Tensor& tiles, int64_t count, const Store& store) {
  const auto& vectors = kernels::vector_kernels();
  const int64_t columns = tiles.size(1),
                stride = kernels::ceil_divide(columns, vectors.width) * vectors.width;
  static thread_local kernels::Scratch scratch;
  float* const rows = scratch.floats(lanes::rows * stride);
  const float* tile = tiles.const_data_ptr<float>();
  for (int64_t first = 0; first < count; first += lanes::rows, tile += columns * lanes::rows) {
    vectors.transpose({tile, kernels::Number::float32, columns, lanes::rows}, stride, 0,
                      lanes::rows, rows);
    store(first, std::min(lanes::rows, count - first), rows, stride);
  }
}

template <class Into>
void store_rows(const at::Tensor& tiles, at::Tensor& matrix, int64_t first, int64_t count) {
  const int64_t columns = matrix.size(1);
  Into* const into = matrix.mutable_data_ptr<Into>() + first * columns;
  for_rows(tiles, count, [&](int64_t row, int64_t rows, const float* numbers, int64_t stride) {
    for (int64_t i = 0; i < rows; ++i, numbers += stride)
      std::transform(numbers, numbers + columns, into + (row + i) * columns,
                     [](float number) { return Into(number); });
  });
}

void store_bfloat16_rows(const at::Tensor& tiles, at::Tensor& matrix, int64_t first,
                         int64_t count) {
  const int64_t columns = matrix.size(1);
  auto* const into = static_cast<uint16_t*>(matrix.mutable_data_ptr()) + first * columns;
  for_rows(tiles, count, [&](int64_t row, int64_t rows, const float* numbers, int64_t stride) {
    kernels::vector_kernels().narrow_rows(rows, columns, numbers, stride, nullptr,
                                          kernels::Number::float32, into + row * columns, columns,
                                          kernels::Number::bfloat16);
  });
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
  if (matrix.scalar_type() == at::kByte) return store_rows<uint8_t>(tiles, matrix, first, count);
  if (matrix.scalar_type() == at::kBFloat16)
    return store_bfloat16_rows(tiles, matrix, first, count);
  with_float(matrix.scalar_type(),
             [&](auto element) { store_rows<decltype(element)>(tiles, matrix, first, count); });
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
