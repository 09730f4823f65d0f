#include "stages/solve/cuda/gptq_kernels.cuh"

#include "stages/solve/cuda/gptq_kernels.hpp"

namespace selfcal::by_row {
namespace {

constexpr size_t bytes(int64_t floats) { return static_cast<size_t>(floats) * sizeof(float); }

}  // namespace

cudaError_t launch_block(const Columns& columns, const TileArrays& memory, int64_t tiles,
                         int64_t first, int64_t last, cudaStream_t stream) {
  const size_t shared = bytes(shared_of_solve(last - first));
  if (const cudaError_t status =
          cudaFuncSetAttribute(solve_block_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                               static_cast<int>(shared));
      status != cudaSuccess)
    return status;
  solve_block_kernel<<<static_cast<unsigned>(tiles), rows_of_tile, shared, stream>>>(
      columns, memory, first, last);
  return cudaGetLastError();
}

cudaError_t launch_beyond(const Columns& columns, const TileArrays& memory, int64_t tiles,
                          int64_t first, int64_t last, cudaStream_t stream) {
  if (last == columns.count) return cudaSuccess;
  const dim3 grid(static_cast<unsigned>(tiles),
                  static_cast<unsigned>(groups_beyond(columns, last)));
  subtract_beyond_kernel<<<grid, dim3(rows_of_tile, warps), bytes(shared_of_subtract(last - first)),
                           stream>>>(columns, memory, first, last);
  return cudaGetLastError();
}

}  // namespace selfcal::by_row
