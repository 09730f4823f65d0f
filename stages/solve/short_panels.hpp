// Rectangles of a square matrix in numbers of 16 bits, for products with tiles at two to four times
// the speed of float32; their error is about 1e-5 of the norms.
#pragma once
#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

#include "stages/solve/panels.hpp"

namespace selfcal {

/// Rectangles of one matrix, each packed in panels for Kernels::subtract_short.
class ShortPanels {
 public:
  /// matrix: contiguous float32 [n, n]. sizes: float32 [n], about those of each row's entries; what
  /// it is multiplied by should be alike in size when multiplied by them.
  ShortPanels(const at::Tensor& matrix, const at::Tensor& sizes, std::vector<Rectangle> rectangles,
              const lanes::Kernels& kernels, const kernels::Context& context);

  /// 32-bit words of one tile's numbers for rectangles of `depth` rows.
  int64_t words(int64_t depth) const;
  /// Makes words() of `count` tiles for rectangles of `depth` rows from `row` on. other: of the
  /// first tile's first column; `stride`: floats to the next one.
  void shorten(int64_t row, int64_t depth, int64_t count, const float* other, int64_t stride,
               int32_t* words) const;
  /// For each of the tiles: tile[j] -= sum_k rectangle[k][j] * other[k], j a column of the
  /// rectangle. `stride`: floats to the next tile.
  void subtract(int64_t rectangle, int64_t count, const int32_t* words, float* tile,
                int64_t stride) const;
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
