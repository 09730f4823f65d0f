#include "pipeline/block_reader.hpp"

#include <ATen/ATen.h>

#include "pipeline/tensor_message.hpp"
#include "pipeline/timed_agreement.hpp"

namespace selfcal {

BlockWeights BlockReader::read(int64_t layer) {
  const auto scope = session_.timer.measure(Phase::read);
  BlockWeights weights;
  agree(team_, session_.timer, [&] {
    if (team_.rank() != 0) return;
    weights = ahead_.valid() ? ahead_.get() : session_.model.read_block(layer);
    if (layer + 1 < end_)
      ahead_ = std::async(std::launch::async, [this, layer] {
        kernels::use_one_library_thread();
        return session_.model.read_block(layer + 1);
      });
  });
  if (team_.size() > 1) {
    if (team_.rank() != 0)
      for (const auto& [name, shape] : session_.model.block(layer).spec().parameters)
        weights[name] = at::empty(shape, session_.model.shape().compute_dtype);
    for (auto& [name, tensor] : weights) team_.broadcast(bytes_of(tensor), 0);
  }
  return weights;
}

}  // namespace selfcal
