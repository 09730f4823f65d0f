// Launches of the kernels in gptq_kernels.cu.
#pragma once
#include <cuda_runtime.h>

#include "stages/solve/cuda/tile_rows.hpp"

namespace selfcal::by_row {

/// Queues the solve of columns [first, last), up to 128, of all tiles; their errors stay in
/// memory.errors. Pointers are to the device.
cudaError_t launch_block(const Columns& columns, const TileArrays& memory, int64_t tiles,
                         int64_t first, int64_t last, cudaStream_t stream);

/// Queues what those errors take off the columns from `last` on.
cudaError_t launch_beyond(const Columns& columns, const TileArrays& memory, int64_t tiles,
                          int64_t first, int64_t last, cudaStream_t stream);

}  // namespace selfcal::by_row
