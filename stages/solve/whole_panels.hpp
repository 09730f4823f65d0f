// Rectangles of a square matrix as whole numbers of 16 bits, for products with tiles at twice the
// speed of float32; their error is about 1e-5 of the norms.
#pragma once
#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

#include "stages/solve/panels.hpp"

namespace selfcal {

/// Tiles as whole numbers: the other operand of a rectangle.
struct WholeTiles {
  at::Tensor numbers;  // int32 [tiles, pairs, 32]
  at::Tensor steps;    // float32 [tiles, 32]
};

/// Rectangles of one matrix, each packed in panels for Kernels::subtract_whole.
class WholePanels {
 public:
  /// matrix: contiguous float32 [n, n]. sizes: float32 [n], about those of each row's entries; what
  /// it is multiplied by should be alike in size when multiplied by them.
  WholePanels(const at::Tensor& matrix, const at::Tensor& sizes, std::vector<Rectangle> rectangles,
              const lanes::Kernels& kernels, const kernels::Context& context);

  /// `count` tiles for rectangles of `depth` rows from `row` on. other: of the first tile's first
  /// column; `stride`: floats to the next one.
  WholeTiles whole(int64_t row, int64_t depth, int64_t count, const float* other,
                   int64_t stride) const;

  /// For each of the tiles: tile[j] -= sum_k rectangle[k][j] * other[k], j a column of the
  /// rectangle. `stride`: floats to the next tile.
  void subtract(int64_t rectangle, const WholeTiles& other, float* tile, int64_t stride) const;
  /// The same of tiles as Panels::subtract takes them.
  void subtract(int64_t rectangle, int64_t count, const float* other, int64_t other_stride,
                float* tile, int64_t tile_stride) const;

 private:
  std::vector<Rectangle> rectangles_;
  std::vector<int64_t> offsets_, step_offsets_;
  at::Tensor factors_, inverse_factors_;  // float32 [n]: of tiles, of rows; powers of two
  at::Tensor numbers_, steps_;
  const lanes::Kernels* kernels_;
};

}  // namespace selfcal
