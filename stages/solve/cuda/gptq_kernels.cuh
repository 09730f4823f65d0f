// GPTQ and n:m SparseGPT on a GPU: for each block of up to 128 columns one kernel in which a thread
// carries a row through the block. Meant to give the bits of the CPU twin. Not yet run on a GPU;
// the tests run the very same text with threads of the CPU for those of a GPU.
#pragma once
#include "stages/solve/cuda/tile_rows.hpp"

namespace selfcal::by_row {

inline constexpr int warp = static_cast<int>(lanes::rows);

/// Floats of shared memory: the factor's block, weights and errors of 32 rows.
constexpr int64_t shared_of_solve(int64_t columns) { return columns * (columns + 2 * warp); }

/// Runs of 32 rows in all tiles.
constexpr int64_t warps_of(const TileArrays& memory) { return memory.tiles * memory.rows / warp; }

/// A thread a row and group. Grid: warps x groups.
__global__ void find_scales_kernel(Columns columns, TileArrays memory) {
  const int64_t row = int64_t(blockIdx.x) * warp + threadIdx.x;
  find_scale_of_group(columns, memory, row / memory.rows, row % memory.rows, blockIdx.y);
}

/// A thread a row. Grid: warps.
__global__ void solve_block_kernel(Columns columns, TileArrays memory, Block block) {
  extern __shared__ float shared[];
  const int64_t count = block.last - block.first;
  const int lane = static_cast<int>(threadIdx.x);
  float* upper = shared;                         // [count][count]
  float* staged = upper + count * count + lane;  // [count][32]
  float* errors = staged + count * warp;         // [count][32]
  for (int64_t i = 0; i < count; ++i)
    for (int64_t j = lane; j < count; j += warp)
      upper[i * count + j] = block.upper[i * block.stride + j];
  __syncthreads();
  const int64_t row = int64_t(blockIdx.x) * warp + lane;
  solve_row_of_tile(columns, memory, row / memory.rows, row % memory.rows,
                    {block.first, block.last, upper, count}, staged, errors);
}

}  // namespace selfcal::by_row
