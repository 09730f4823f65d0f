// Rows of a matrix between their row-major tensors and the tiles [columns][32 rows] that the vector
// code works on.
#pragma once
#include <ATen/core/Tensor.h>

#include <cstdint>

#include "stages/lanes/lanes.hpp"

namespace selfcal {

/// Tiles that hold `rows` rows.
inline int64_t tiles_of(int64_t rows) { return (rows + lanes::rows - 1) / lanes::rows; }

/// Tiles of weight rows [first, first + count): float32 [tiles, columns, 32]; lanes past the last
/// row are 0. weight: [rows, columns] of any float dtype. Not finite: ExitCode::data.
at::Tensor load_tiles(const at::Tensor& weight, int64_t first, int64_t count);

/// Writes float32 tiles into rows [first, first + count) of matrix [rows, columns], rounded to its
/// dtype (a float dtype, or uint8 for whole numbers).
void store_tiles(const at::Tensor& tiles, at::Tensor& matrix, int64_t first, int64_t count);

/// Tiles with column permutation[i] at position i, and the inverse.
at::Tensor gather_columns(const at::Tensor& tiles, const at::Tensor& permutation);
at::Tensor scatter_columns(const at::Tensor& tiles, const at::Tensor& permutation);

}  // namespace selfcal
