// Solvers that take rows one at a time: the CUDA kernels, and their twin on the CPU.
#pragma once
#include <cstdint>
#include <memory>

#include "stages/solve/cuda/block_of_columns.hpp"

namespace selfcal {

/// Tiles [columns][32 rows] one after the other, in host memory (TilesInWork).
struct TileArrays {
  int64_t tiles = 0;
  int64_t groups = 0;
  float* weight = nullptr;  // [tiles][columns][32]; in: the weights, out: as they are stored
  float* codes = nullptr;   // like weight, where weights are quantised
  float* kept = nullptr;    // like weight, where weights are pruned: 1 stays, 0 goes
  float* scale = nullptr;   // [tiles][groups][32], where weights are quantised
  float* zero = nullptr;
};

class TileSolver {
 public:
  virtual ~TileSolver() = default;
  /// Solves all columns of all tiles, in place. Columns' pointers are to host memory.
  virtual void solve(const by_row::Columns& columns, const TileArrays& arrays) = 0;
};

/// The CUDA kernel's functions on the CPU, row after row: slow, for tests.
std::unique_ptr<TileSolver> make_cpu_twin();

/// By the name that the GPU module exports it under.
inline constexpr const char* cuda_tile_solver = "selfcal_gpu_tile_solver";

/// Columns that the CUDA kernel holds at a time.
inline constexpr int64_t largest_cuda_block = 128;

}  // namespace selfcal
