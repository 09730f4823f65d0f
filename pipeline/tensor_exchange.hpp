// Tensors between ranks: by NCCL where the communicator has it and they are on a device, else by
// MPI through the host's memory.
#pragma once
#include <ATen/core/Tensor.h>

#include <map>
#include <string>
#include <vector>

#include "comm/communicator.hpp"
#include "stages/kernels/ops.hpp"

namespace selfcal {

/// Whether tensors in the device's memory travel from there, by NCCL. (Library operations on host
/// memory count as a device, as they do everywhere in tests.)
bool reaches_devices(const Communicator& ranks, const kernels::Device& device);

/// Collective: root's entries to all, in place. tensor: contiguous, of the same shape and dtype and
/// in the same kind of memory on all ranks.
void broadcast_tensor(const Communicator& ranks, at::Tensor& tensor, int root,
                      const kernels::Device& device);

/// Collective: every rank's tensors, in the host's memory, to all, in rank order. This rank's are
/// the given ones.
std::vector<std::map<std::string, at::Tensor>> gather_tensors(
    const Communicator& ranks, const std::map<std::string, at::Tensor>& tensors);

/// Collective: the same while the ranks work on; tensor: in the device's memory where
/// reaches_devices() holds, else in the host's.
Request begin_broadcast(const Communicator& ranks, const at::Tensor& tensor, int root,
                        const kernels::Device& device);

/// One rank's part of a hand-over between two: all tensors, contiguous and in the device's memory,
/// in the order that both know, as one exchange. Where reaches_devices() holds.
Request send_tensors(const Communicator& ranks, const std::vector<at::Tensor>& tensors, int to);
Request receive_tensors(const Communicator& ranks, const std::vector<at::Tensor>& tensors,
                        int from);

}  // namespace selfcal
