#include "stages/solve/cuda/gptq_kernels.cuh"

#include "stages/solve/cuda/gptq_kernels.hpp"

namespace selfcal::by_row {

cudaError_t launch_scales(const Columns& columns, const TileArrays& memory, cudaStream_t stream) {
  const dim3 grid(static_cast<unsigned>(warps_of(memory)), static_cast<unsigned>(memory.groups));
  find_scales_kernel<<<grid, warp, 0, stream>>>(columns, memory);
  return cudaGetLastError();
}

cudaError_t launch_block(const Columns& columns, const TileArrays& memory, const Block& block,
                         cudaStream_t stream) {
  const size_t shared =
      static_cast<size_t>(shared_of_solve(block.last - block.first)) * sizeof(float);
  if (const cudaError_t status =
          cudaFuncSetAttribute(solve_block_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                               static_cast<int>(shared));
      status != cudaSuccess)
    return status;
  solve_block_kernel<<<static_cast<unsigned>(warps_of(memory)), warp, shared, stream>>>(
      columns, memory, block);
  return cudaGetLastError();
}

}  // namespace selfcal::by_row
