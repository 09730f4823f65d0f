// GPTQ and n:m SparseGPT on a GPU: for each block of up to 128 columns one kernel in which a thread
// carries a row through the block, and one that takes the block's errors off the columns beyond it.
// Sums run in the order of the CPU code, fused where that fuses: meant to give the same bits.
// Compiled, and not yet run on a GPU.
#include "stages/solve/cuda/gptq_kernels.hpp"

#include "stages/solve/cuda/tile_solver.hpp"

namespace selfcal::by_row {
namespace {

constexpr int rows = int(lanes::rows);
constexpr int largest_block = int(largest_cuda_block);

/// Bytes of shared memory: the factor's block, and weights and errors of 32 rows.
constexpr size_t shared_bytes(int64_t block) {
  return static_cast<size_t>(block * (block + 2 * rows)) * sizeof(float);
}

/// A warp a tile, a thread a row.
__global__ void solve_block_kernel(Columns columns, TileMemory memory, int64_t first,
                                   int64_t last) {
  extern __shared__ float shared[];
  const int64_t count = last - first;
  const int row = threadIdx.x;
  float* upper = shared;                        // [count][count]
  float* staged = upper + count * count + row;  // [count][32]
  float* errors = staged + count * rows;        // [count][32]
  for (int64_t i = 0; i < count; ++i)
    for (int64_t j = row; j < count; j += rows)
      upper[i * count + j] = columns.upper[(first + i) * columns.count + first + j];
  __syncthreads();
  solve_row_of_tile(columns, memory, blockIdx.x, row, {first, last, upper, count}, staged, errors);
}

constexpr int warps = 8, columns_of_warp = 8, columns_of_cta = warps * columns_of_warp;

/// weight[j] -= sum_k upper[first + k][j] * error[k] for the columns from `last` on. A thread: one
/// row, eight columns.
__global__ void subtract_beyond_kernel(Columns columns, TileMemory memory, int64_t first,
                                       int64_t last) {
  __shared__ float errors[largest_block][rows];
  __shared__ float upper[largest_block][columns_of_cta];
  const int64_t depth = last - first, tile = blockIdx.x;
  const int64_t begin = last + int64_t(blockIdx.y) * columns_of_cta;
  const int r = threadIdx.x, warp = threadIdx.y, thread = warp * rows + r;
  const float* from = memory.errors + tile * columns.block * rows;
  for (int64_t i = thread; i < depth * rows; i += warps * rows)
    errors[i / rows][i % rows] = from[i];
  for (int64_t i = thread; i < depth * columns_of_cta; i += warps * rows) {
    const int64_t k = i / columns_of_cta, j = begin + i % columns_of_cta;
    upper[k][i % columns_of_cta] =
        j < columns.count ? columns.upper[(first + k) * columns.count + j] : 0.0f;
  }
  __syncthreads();

  float sums[columns_of_warp] = {};
  for (int64_t k = 0; k < depth; ++k) {
    const float error = errors[k][r];
#pragma unroll
    for (int j = 0; j < columns_of_warp; ++j)
      sums[j] = fused(upper[k][warp * columns_of_warp + j], error, sums[j]);
  }
  float* weight = row_at(memory.weight, tile, columns.count, r);
#pragma unroll
  for (int j = 0; j < columns_of_warp; ++j) {
    const int64_t column = begin + warp * columns_of_warp + j;
    if (column < columns.count) weight[column * rows] -= sums[j];
  }
}

}  // namespace

cudaError_t launch_block(const Columns& columns, const TileMemory& memory, int64_t tiles,
                         int64_t first, int64_t last, cudaStream_t stream) {
  const size_t shared = shared_bytes(last - first);
  if (const cudaError_t status =
          cudaFuncSetAttribute(solve_block_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                               static_cast<int>(shared));
      status != cudaSuccess)
    return status;
  solve_block_kernel<<<static_cast<unsigned>(tiles), rows, shared, stream>>>(columns, memory, first,
                                                                             last);
  return cudaGetLastError();
}

cudaError_t launch_beyond(const Columns& columns, const TileMemory& memory, int64_t tiles,
                          int64_t first, int64_t last, cudaStream_t stream) {
  if (last == columns.count) return cudaSuccess;
  const int64_t parts = (columns.count - last + columns_of_cta - 1) / columns_of_cta;
  const dim3 grid(static_cast<unsigned>(tiles), static_cast<unsigned>(parts));
  subtract_beyond_kernel<<<grid, dim3(rows, warps), 0, stream>>>(columns, memory, first, last);
  return cudaGetLastError();
}

}  // namespace selfcal::by_row
