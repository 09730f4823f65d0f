// How the result of a tiled `linear` is cut: tiles that one thread computes.
#pragma once
#include "stages/kernels/cpu/matrix.hpp"

namespace selfcal::kernels {

// Multiples of what the inner products of all instruction sets take at once.
inline constexpr int64_t row_step = 12, column_step = 32;

/// Equal parts of at most `most`, in multiples of `step`.
inline int64_t part_of(int64_t whole, int64_t most, int64_t step) {
  return ceil_divide(ceil_divide(whole, ceil_divide(whole, most)), step) * step;
}

struct Operands {
  Matrix x, weight, bias;
  void* y;
  Number y_number;
};

/// A part of the result.
struct Tile {
  int64_t row, rows, column, columns;
};

/// Writes a tile whose sums lie at sums[i * stride + j].
inline void write_tile(const Operands& operands, const Tile& tile, const float* sums,
                       int64_t stride) {
  const Matrix& bias = operands.bias;
  const int64_t columns = operands.weight.count;
  vector_kernels().narrow_rows(
      tile.rows, tile.columns, sums, stride, bias.data ? at_entry(bias, tile.column) : nullptr,
      bias.number, at_entry(operands.y, operands.y_number, tile.row * columns + tile.column),
      columns, operands.y_number);
}

/// Calls body(tile) for all tiles of columns [first, end), on the context's threads.
template <class Body>
void for_result(const Context& context, const Operands& operands, int64_t first, int64_t end,
                int64_t highest, int64_t widest, const Body& body) {
  const int64_t height = part_of(operands.x.count, highest, row_step);
  const int64_t width = part_of(end - first, widest, column_step),
                across = ceil_divide(end - first, width);
  for_tiles(context, ceil_divide(operands.x.count, height) * across, [&](int64_t index) {
    const int64_t row = index / across * height, column = first + index % across * width;
    body(
        Tile{row, std::min(height, operands.x.count - row), column, std::min(width, end - column)});
  });
}

}  // namespace selfcal::kernels
