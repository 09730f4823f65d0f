// The upper triangle of a square matrix, packed by blocks into the panels that the vector code
// reads.
#pragma once
#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

#include "stages/kernels/ops.hpp"
#include "stages/lanes/lanes.hpp"

namespace selfcal {

/// A rectangle of a matrix: rows [row, row + depth) x columns [column, column + columns).
struct Rectangle {
  int64_t row, depth, column, columns;
};

/// Rectangles of one matrix, each packed in panels for Kernels::subtract_products.
class Panels {
 public:
  /// matrix: contiguous float32 [n, n].
  Panels(const at::Tensor& matrix, std::vector<Rectangle> rectangles, const lanes::Kernels& kernels,
         const kernels::Context& context);

  /// For each of `count` tiles: tile[j] -= sum_k rectangle[k][j] * other[k], j a column of the
  /// rectangle. other, tile: of the first tile; `other_stride`, `tile_stride`: floats to the next
  /// one.
  void subtract(int64_t rectangle, int64_t count, const float* other, int64_t other_stride,
                float* tile, int64_t tile_stride) const;

  const Rectangle& rectangle(int64_t i) const { return rectangles_[i]; }

 private:
  std::vector<Rectangle> rectangles_;
  std::vector<int64_t> offsets_;
  at::Tensor data_;
  const lanes::Kernels* kernels_;
};

}  // namespace selfcal
