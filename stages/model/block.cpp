#include "stages/model/block.hpp"

#include <ATen/ATen.h>

namespace selfcal {

BlockWeights place(const BlockWeights& weights, const kernels::Device& device) {
  BlockWeights placed;
  for (const auto& [name, tensor] : weights) placed.emplace(name, tensor.to(device.memory));
  return placed;
}

at::Tensor forward(const Block& block, const at::Tensor& hidden, const BlockWeights& weights) {
  State state = block.begin(hidden, weights);
  for (int stage = 0; stage < block.spec().stages; ++stage)
    state = block.advance(std::move(state), stage, weights);
  return block.finish(std::move(state));
}

}  // namespace selfcal
