#include "pipeline/block_reader.hpp"

#include <ATen/ATen.h>

#include "pipeline/tensor_exchange.hpp"
#include "pipeline/timed_agreement.hpp"

namespace selfcal {

BlockWeights BlockReader::read(int64_t layer) {
  const auto scope = session_.timer.measure(Phase::read);
  BlockWeights weights;
  agree(team_, session_.timer, [&] {
    if (team_.rank() != 0) return;
    weights = ahead_.valid() ? ahead_.get() : source_(layer);
    if (layer + 1 < end_)
      ahead_ = std::async(std::launch::async, [this, layer] {
        kernels::use_one_library_thread();
        return source_(layer + 1);
      });
  });
  if (team_.size() > 1) share(weights, layer);
  return weights;
}

/// From the first rank to the others: by NCCL into their devices' memory, or by MPI into the
/// host's.
void BlockReader::share(BlockWeights& weights, int64_t layer) {
  const kernels::Device& device = session_.context.device;
  const at::Device memory = reaches_devices(team_, device) ? device.memory : at::kCPU;
  const auto dtype = session_.model.shape().compute_dtype;
  for (const auto& [name, shape] : session_.model.block(layer).spec().parameters) {
    at::Tensor there = team_.rank() == 0 ? weights.at(name).to(memory)
                                         : at::empty(shape, at::device(memory).dtype(dtype));
    broadcast_tensor(team_, there, 0, device);
    if (team_.rank() != 0) weights[name] = there;
  }
}

}  // namespace selfcal
