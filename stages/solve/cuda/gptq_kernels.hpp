// Launches of the kernels in gptq_kernels.cu. Pointers are to the device.
#pragma once
#include <cuda_runtime.h>

#include "stages/solve/cuda/tile_rows.hpp"

namespace selfcal::by_row {

/// Queues the search for the scales of all groups, up to 65,535, of all rows.
cudaError_t launch_scales(const Columns& columns, const TileArrays& memory, cudaStream_t stream);

/// Queues the solve of a block's columns, up to 128, of all rows; their errors stay in
/// memory.errors.
cudaError_t launch_block(const Columns& columns, const TileArrays& memory, const Block& block,
                         cudaStream_t stream);

}  // namespace selfcal::by_row
