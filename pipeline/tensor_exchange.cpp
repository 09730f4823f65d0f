#include "pipeline/tensor_exchange.hpp"

#include <ATen/ATen.h>

#include "pipeline/tensor_message.hpp"

namespace selfcal {

bool travels_by_nccl(const Communicator& ranks, const at::Tensor& tensor,
                     const kernels::Device& device) {
  return ranks.moves_device_memory() && device.uses_library() && tensor.device() == device.memory;
}

void broadcast_tensor(const Communicator& ranks, at::Tensor& tensor, int root,
                      const kernels::Device& device) {
  if (travels_by_nccl(ranks, tensor, device))
    return ranks.broadcast(device_bytes_of(tensor), root).wait();
  if (tensor.is_cpu()) return ranks.broadcast(bytes_of(tensor), root);
  const at::Tensor copy = tensor.to(at::kCPU);
  ranks.broadcast(bytes_of(copy), root);
  if (ranks.rank() != root) tensor.copy_(copy);
}

}  // namespace selfcal
