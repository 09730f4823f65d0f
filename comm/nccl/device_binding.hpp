// Which GPU each rank works on: one rank a GPU.
#pragma once
#include <string>
#include <vector>

#include "base/host.hpp"
#include "comm/communicator.hpp"
#include "comm/nccl/nccl_calls.hpp"

namespace selfcal {

struct DeviceBinding {
  std::string host;
  int device = 0;      // number of the GPU in the rank's own list
  std::string bus_id;  // PCI address
  std::string name;    // of the model
};

/// Collective over all ranks of the job. The n-th rank of a host takes its n-th GPU, or the only
/// one that it sees (a launcher that deals the GPUs shows each rank its own). More ranks than GPUs
/// on a host, or two ranks on the same GPU: ExitCode::usage on all ranks. Result: by rank, the same
/// on all.
std::vector<DeviceBinding> bind_devices(const Communicator& ranks, NcclCalls& calls,
                                        const std::string& host = host_name());

/// "rank 3: GPU 1 of n2, 0000:65:00.0, NVIDIA H100"
std::string describe(int rank, const DeviceBinding& binding);

}  // namespace selfcal
