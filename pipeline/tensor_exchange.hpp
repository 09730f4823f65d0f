// Tensors between ranks: by NCCL where the communicator has it and they are on a device, else by
// MPI through the host's memory.
#pragma once
#include <ATen/core/Tensor.h>

#include "comm/communicator.hpp"
#include "stages/kernels/ops.hpp"

namespace selfcal {

/// Whether tensors in the device's memory travel from there. Library operations on host memory
/// count as a device, as they do everywhere in tests.
bool travels_by_nccl(const Communicator& ranks, const at::Tensor& tensor,
                     const kernels::Device& device);

/// Collective: root's entries to all, in place. tensor: contiguous, of the same shape and dtype and
/// in the same kind of memory on all ranks.
void broadcast_tensor(const Communicator& ranks, at::Tensor& tensor, int root,
                      const kernels::Device& device);

}  // namespace selfcal
