#include "pipeline/tensor_exchange.hpp"

#include <ATen/ATen.h>

#include "pipeline/tensor_message.hpp"

namespace selfcal {
namespace {

Request exchange(const Communicator& ranks, DeviceMessage::Kind kind,
                 const std::vector<at::Tensor>& tensors, int peer) {
  std::vector<DeviceMessage> messages;
  for (const auto& tensor : tensors) messages.push_back({kind, peer, device_bytes_of(tensor)});
  return ranks.exchange(messages);
}

}  // namespace

bool reaches_devices(const Communicator& ranks, const kernels::Device& device) {
  return ranks.moves_device_memory() && device.uses_library();
}

void broadcast_tensor(const Communicator& ranks, at::Tensor& tensor, int root,
                      const kernels::Device& device) {
  if (reaches_devices(ranks, device) && tensor.device() == device.memory)
    return ranks.broadcast(device_bytes_of(tensor), root).wait();
  if (tensor.is_cpu()) return ranks.broadcast(bytes_of(tensor), root);
  const at::Tensor copy = tensor.to(at::kCPU);
  ranks.broadcast(bytes_of(copy), root);
  if (ranks.rank() != root) tensor.copy_(copy);
}

std::vector<std::map<std::string, at::Tensor>> gather_tensors(
    const Communicator& ranks, const std::map<std::string, at::Tensor>& tensors) {
  if (ranks.size() == 1) return {tensors};
  const auto mine = static_cast<size_t>(ranks.rank());
  std::vector<int64_t> sizes(static_cast<size_t>(ranks.size()));
  sizes[mine] = static_cast<int64_t>(packed_bytes(tensors));
  ranks.all_reduce(std::span(sizes), ReduceOp::sum);
  std::vector<at::Tensor> messages;
  std::vector<std::span<std::byte>> parts;
  for (const int64_t size : sizes) {
    messages.push_back(at::empty({size}, at::kByte));
    parts.push_back(bytes_of(messages.back()));
  }
  pack_tensors(tensors, parts[mine]);
  ranks.all_gather(parts);
  std::vector<std::map<std::string, at::Tensor>> all;
  for (size_t rank = 0; rank < messages.size(); ++rank)
    all.push_back(rank == mine ? tensors : view_tensors(messages[rank]));
  return all;
}

Request begin_broadcast(const Communicator& ranks, const at::Tensor& tensor, int root,
                        const kernels::Device& device) {
  return reaches_devices(ranks, device) ? ranks.broadcast(device_bytes_of(tensor), root)
                                        : ranks.begin_broadcast(bytes_of(tensor), root);
}

Request send_tensors(const Communicator& ranks, const std::vector<at::Tensor>& tensors, int to) {
  return exchange(ranks, DeviceMessage::Kind::send, tensors, to);
}

Request receive_tensors(const Communicator& ranks, const std::vector<at::Tensor>& tensors,
                        int from) {
  return exchange(ranks, DeviceMessage::Kind::receive, tensors, from);
}

}  // namespace selfcal
