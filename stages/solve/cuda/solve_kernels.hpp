// What solves on a device need beside the tensor library: kernels that carry rows through a block
// of columns. The GPU module has them; their twin runs on the CPU.
#pragma once
#include <cstdint>
#include <memory>

#include "stages/solve/cuda/tile_rows.hpp"

namespace selfcal {

/// All pointers are to the device's memory. Calls are queued behind the tensor library's own work
/// on its current stream; one that cannot be started is ExitCode::internal.
class SolveKernels {
 public:
  /// Columns of a block that a kernel holds at a time.
  static constexpr int64_t largest_block = 128;

  virtual ~SolveKernels() = default;
  /// Scales and zeros of all groups, runs of columns.group_size positions, from the weights.
  virtual void find_scales(const by_row::Columns& columns, const by_row::TileArrays& arrays) = 0;
  /// The columns of a block, up to largest_block, in all tiles; arrays.errors has their errors
  /// then.
  virtual void solve_block(const by_row::Columns& columns, const by_row::TileArrays& arrays,
                           const by_row::Block& block) = 0;
};

/// The kernels' functions on the CPU, row after row, in host memory: slow, for tests.
std::unique_ptr<SolveKernels> make_cpu_twin();

/// By the name that the GPU module exports it under.
inline constexpr const char* cuda_solve_kernels = "selfcal_gpu_solve_kernels";

}  // namespace selfcal
