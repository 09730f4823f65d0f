// The CUDA kernels' text, compiled for the CPU: a thread of the CPU for each of a GPU's block, one
// block after the other. Shows that the kernels compute what they should, not that a GPU does.
#pragma once
#include <memory>

#include "stages/solve/cuda/solve_kernels.hpp"

namespace selfcal::testing_support {

std::unique_ptr<SolveKernels> make_kernels_on_threads();

}  // namespace selfcal::testing_support
