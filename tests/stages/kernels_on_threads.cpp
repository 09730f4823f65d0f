// Compiled without contraction, like the kernels.
#include "tests/stages/kernels_on_threads.hpp"

#include <algorithm>
#include <barrier>
#include <functional>
#include <limits>
#include <thread>
#include <vector>

// What CUDA's language has and C++ has not.
namespace {
struct Index {
  unsigned x = 0, y = 0;
};
thread_local Index threadIdx, blockIdx;
thread_local std::barrier<>* threads_of_block = nullptr;
void __syncthreads() { threads_of_block->arrive_and_wait(); }
}  // namespace
namespace selfcal::by_row {
extern float shared[];
}
#define __global__ static
#define __shared__
#include "stages/solve/cuda/gptq_kernels.cuh"

namespace selfcal::by_row {
float shared[128 * (128 + 2 * 32)];
}

namespace selfcal::testing_support {
namespace {

using namespace by_row;

/// Runs kernel() in every thread of every block. What a block left in shared memory is spoilt
/// before the next.
void launch(Index grid, Index block, const std::function<void()>& kernel) {
  std::barrier<> barrier(block.x * block.y);
  std::vector<std::jthread> threads;
  for (unsigned y = 0; y < block.y; ++y) {
    for (unsigned x = 0; x < block.x; ++x) {
      threads.emplace_back([&, x, y] {
        threadIdx = {x, y};
        threads_of_block = &barrier;
        for (blockIdx.x = 0; blockIdx.x < grid.x; ++blockIdx.x) {
          for (blockIdx.y = 0; blockIdx.y < grid.y; ++blockIdx.y) {
            if (x == 0 && y == 0)
              std::ranges::fill(shared, std::numeric_limits<float>::quiet_NaN());
            __syncthreads();
            kernel();
            __syncthreads();
          }
        }
      });
    }
  }
}

class KernelsOnThreads : public SolveKernels {
 public:
  void find_scales(const Columns& columns, const TileArrays& arrays) override {
    launch({unsigned(warps_of(arrays)), unsigned(arrays.groups)}, {warp, 1},
           [&] { find_scales_kernel(columns, arrays); });
  }
  void solve_block(const Columns& columns, const TileArrays& arrays, const Block& block) override {
    launch({unsigned(warps_of(arrays)), 1}, {warp, 1},
           [&] { solve_block_kernel(columns, arrays, block); });
  }
};

}  // namespace

std::unique_ptr<SolveKernels> make_kernels_on_threads() {
  return std::make_unique<KernelsOnThreads>();
}

}  // namespace selfcal::testing_support
