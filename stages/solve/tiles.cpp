#include "stages/solve/tiles.hpp"

#include <ATen/ATen.h>

#include "base/error.hpp"

namespace selfcal {
namespace {

constexpr int64_t run = 16;  // columns moved at a time: a cache line of a row

template <class From, class Into>
void store_tile(const From* tile, Into* rows, int64_t count, int64_t columns) {
  for (int64_t first = 0; first < columns; first += run) {
    const int64_t last = std::min(first + run, columns);
    for (int64_t row = 0; row < count; ++row) {
      for (int64_t j = first; j < last; ++j)
        rows[row * columns + j] = Into(tile[j * lanes::rows + row]);
    }
  }
}

template <class From, class Into>
void store_all(const at::Tensor& tiles, at::Tensor& matrix, int64_t first, int64_t count) {
  const int64_t columns = matrix.size(1);
  const From* tile = tiles.const_data_ptr<From>();
  Into* rows = matrix.mutable_data_ptr<Into>() + first * columns;
  for (int64_t row = 0; row < count; row += lanes::rows, tile += columns * lanes::rows) {
    store_tile(tile, rows + row * columns, std::min(lanes::rows, count - row), columns);
  }
}

}  // namespace

at::Tensor load_tiles(const at::Tensor& weight, int64_t first, int64_t count) {
  const int64_t columns = weight.size(1);
  const at::Tensor rows = weight.narrow(0, first, count).to(at::kFloat).contiguous();
  at::Tensor tiles = at::empty({tiles_of(count), columns, lanes::rows}, at::kFloat);
  if (count % lanes::rows != 0) tiles.select(0, tiles.size(0) - 1).zero_();
  const float* from = rows.const_data_ptr<float>();
  float unfinite = 0;  // stays 0 while all are finite
  for (int64_t first_row = 0; first_row < count; first_row += lanes::rows) {
    float* tile = tiles.mutable_data_ptr<float>() + first_row * columns;
    const int64_t here = std::min(lanes::rows, count - first_row);
    for (int64_t first_column = 0; first_column < columns; first_column += run) {
      const int64_t last = std::min(first_column + run, columns);
      for (int64_t row = 0; row < here; ++row) {
        for (int64_t j = first_column; j < last; ++j) {
          const float value = from[(first_row + row) * columns + j];
          unfinite += value * 0;
          tile[j * lanes::rows + row] = value;
        }
      }
    }
  }
  if (unfinite != 0) fail(ExitCode::data, "weight not finite");
  return tiles;
}

void store_tiles(const at::Tensor& tiles, at::Tensor& matrix, int64_t first, int64_t count) {
  if (tiles.scalar_type() == at::kByte)
    return store_all<uint8_t, uint8_t>(tiles, matrix, first, count);
  switch (matrix.scalar_type()) {
    case at::kFloat:
      return store_all<float, float>(tiles, matrix, first, count);
    case at::kBFloat16:
      return store_all<float, at::BFloat16>(tiles, matrix, first, count);
    case at::kHalf:
      return store_all<float, at::Half>(tiles, matrix, first, count);
    case at::kByte:
      return store_all<float, uint8_t>(tiles, matrix, first, count);
    default:
      fail(ExitCode::internal, "solved rows cannot be stored as {}",
           toString(matrix.scalar_type()));
  }
}

}  // namespace selfcal
