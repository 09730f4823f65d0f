// The SolveKernels of the GPU module. Compiled, and not yet run on a GPU.
#include <c10/cuda/CUDAStream.h>

#include "base/error.hpp"
#include "stages/solve/cuda/gptq_kernels.hpp"
#include "stages/solve/cuda/solve_kernels.hpp"

namespace selfcal {
namespace {

using namespace by_row;

void check(cudaError_t status, const char* what) {
  if (status != cudaSuccess)
    fail(ExitCode::internal, "{} on the GPU: {}", what, cudaGetErrorString(status));
}

class CudaSolveKernels : public SolveKernels {
 public:
  void find_scales(const Columns& columns, const TileArrays& arrays) override {
    check(launch_scales(columns, arrays, stream()), "starting the search for scales");
  }

  void solve_block(const Columns& columns, const TileArrays& arrays, const Block& block) override {
    check(launch_block(columns, arrays, block, stream()), "starting a block of columns");
  }

 private:
  static cudaStream_t stream() { return c10::cuda::getCurrentCUDAStream().stream(); }
};

}  // namespace
}  // namespace selfcal

extern "C" selfcal::SolveKernels* selfcal_gpu_solve_kernels() {
  return new selfcal::CudaSolveKernels;
}
