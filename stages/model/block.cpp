#include "stages/model/block.hpp"

namespace selfcal {

at::Tensor forward(const Block& block, const at::Tensor& hidden, const BlockWeights& weights) {
  State state = block.begin(hidden, weights);
  for (int stage = 0; stage < block.spec().stages; ++stage)
    state = block.advance(std::move(state), stage, weights);
  return block.finish(std::move(state));
}

}  // namespace selfcal
