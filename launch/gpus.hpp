// The device of a run.
#pragma once
#include <memory>
#include <optional>
#include <string>

#include "comm/communicator.hpp"
#include "pipeline/config.hpp"
#include "stages/solve/cuda/solve_kernels.hpp"

namespace selfcal {

struct RunDevice {
  std::shared_ptr<SolveKernels> solver = {};  // of the GPU module
  kernels::Device device = {};                // borrows it
  std::string kind = {};                   // of a GPU: model and libraries, which decide the bits
  uint64_t memory = 0;                     // bytes of the smallest GPU of a rank
  std::optional<Communicator> ranks = {};  // all ranks, over NCCL, where they have GPUs
};

/// Collective. cuda: loads what GPUs need, takes this rank's and logs who has which; where a rank
/// has none, or shares it, or something is missing: an error on all ranks. automatic: the same,
/// or the CPU, and why, where that does not do. cpu: says so where GPUs stand idle.
RunDevice choose_device(const Communicator& world, DeviceChoice wanted);

}  // namespace selfcal
