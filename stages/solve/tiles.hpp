// Rows of a matrix between their row-major tensors and the tiles [columns][32 rows] that the vector
// code works on.
#pragma once
#include <ATen/core/Tensor.h>

#include <cstdint>

#include "stages/solve/lanes/lanes.hpp"

namespace selfcal {

/// Tiles that hold `rows` rows.
inline int64_t tiles_of(int64_t rows) { return (rows + lanes::rows - 1) / lanes::rows; }

/// Tiles of weight rows [first, first + count): float32 [tiles, columns, 32]; lanes past the last
/// row are 0. weight: [rows, columns] of any float dtype. Not finite: ExitCode::data.
at::Tensor load_tiles(const at::Tensor& weight, int64_t first, int64_t count);

/// Writes tiles into rows [first, first + count) of matrix [rows, columns]. Float tiles are rounded
/// to the matrix's dtype (float32, bfloat16, float16 or uint8); uint8 tiles go to a uint8 matrix.
void store_tiles(const at::Tensor& tiles, at::Tensor& matrix, int64_t first, int64_t count);

}  // namespace selfcal
