// Solvers that take rows one at a time: the CUDA kernels, and their twin on the CPU.
#pragma once
#include <cstdint>
#include <memory>

#include "stages/solve/cuda/tile_rows.hpp"

namespace selfcal {

class TileSolver {
 public:
  virtual ~TileSolver() = default;
  /// Solves all columns of all tiles, in place. All pointers are to host memory; `arrays` needs no
  /// errors.
  virtual void solve(const by_row::Columns& columns, const by_row::TileArrays& arrays) = 0;
};

/// The CUDA kernel's functions on the CPU, row after row: slow, for tests.
std::unique_ptr<TileSolver> make_cpu_twin();

/// By the name that the GPU module exports it under.
inline constexpr const char* cuda_tile_solver = "selfcal_gpu_tile_solver";

/// Columns that the CUDA kernel holds at a time.
inline constexpr int64_t largest_cuda_block = 128;

}  // namespace selfcal
