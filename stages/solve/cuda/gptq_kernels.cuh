// GPTQ and n:m SparseGPT on a GPU: for each block of up to 128 columns one kernel in which a thread
// carries a row through the block, and one that takes the block's errors off the columns beyond it.
// Sums run in the order of the CPU code, fused where that fuses: meant to give the same bits. Not
// yet run on a GPU; the tests run the very same text with threads of the CPU for those of a GPU.
#pragma once
#include "stages/solve/cuda/tile_rows.hpp"

namespace selfcal::by_row {

inline constexpr int rows_of_tile = static_cast<int>(lanes::rows);

/// Floats of shared memory: the factor's block, weights and errors of 32 rows.
constexpr int64_t shared_of_solve(int64_t columns) {
  return columns * (columns + 2 * rows_of_tile);
}

/// A warp a tile, a thread a row. Grid: tiles.
__global__ void solve_block_kernel(Columns columns, TileArrays memory, int64_t first,
                                   int64_t last) {
  extern __shared__ float shared[];
  const int64_t count = last - first;
  const int row = static_cast<int>(threadIdx.x);
  float* upper = shared;                          // [count][count]
  float* staged = upper + count * count + row;    // [count][32]
  float* errors = staged + count * rows_of_tile;  // [count][32]
  for (int64_t i = 0; i < count; ++i)
    for (int64_t j = row; j < count; j += rows_of_tile)
      upper[i * count + j] = columns.upper[(first + i) * columns.count + first + j];
  __syncthreads();
  solve_row_of_tile(columns, memory, blockIdx.x, row, {first, last, upper, count}, staged, errors);
}

inline constexpr int warps = 8, columns_of_warp = 8, columns_of_group = warps * columns_of_warp;

/// Floats of shared memory: the errors of 32 rows, the factor's rectangle.
constexpr int64_t shared_of_subtract(int64_t depth) {
  return depth * (rows_of_tile + columns_of_group);
}

/// weight[j] -= sum_k upper[first + k][j] * error[k] for the columns from `last` on. Threads: 32 x
/// 8, each of one row and eight columns. Grid: tiles x groups of columns.
__global__ void subtract_beyond_kernel(Columns columns, TileArrays memory, int64_t first,
                                       int64_t last) {
  extern __shared__ float shared[];
  const int64_t depth = last - first, tile = blockIdx.x;
  const int64_t begin = last + int64_t(blockIdx.y) * columns_of_group;
  const int row = static_cast<int>(threadIdx.x), warp = static_cast<int>(threadIdx.y);
  float* errors = shared;                        // [depth][32]
  float* upper = errors + depth * rows_of_tile;  // [depth][columns_of_group]

  constexpr int threads = warps * rows_of_tile;
  const int thread = warp * rows_of_tile + row;
  const float* left = row_at(memory.errors, tile, columns.block, 0);
  for (int64_t i = thread; i < depth * rows_of_tile; i += threads) errors[i] = left[i];
  for (int64_t i = thread; i < depth * columns_of_group; i += threads) {
    const int64_t k = i / columns_of_group, j = begin + i % columns_of_group;
    upper[i] = j < columns.count ? columns.upper[(first + k) * columns.count + j] : 0.0f;
  }
  __syncthreads();

  float sums[columns_of_warp] = {};
  for (int64_t k = 0; k < depth; ++k) {
    const float error = errors[k * rows_of_tile + row];
    const float* factors = upper + k * columns_of_group + warp * columns_of_warp;
    for (int j = 0; j < columns_of_warp; ++j) sums[j] = fused(factors[j], error, sums[j]);
  }
  float* weight = row_at(memory.weight, tile, columns.count, row);
  for (int j = 0; j < columns_of_warp; ++j) {
    const int64_t column = begin + warp * columns_of_warp + j;
    if (column < columns.count) weight[column * rows_of_tile] -= sums[j];
  }
}

/// Groups of columns beyond a block that ends at `last`.
constexpr int64_t groups_beyond(const Columns& columns, int64_t last) {
  return (columns.count - last + columns_of_group - 1) / columns_of_group;
}

}  // namespace selfcal::by_row
