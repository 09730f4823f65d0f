#include "stages/generate/decoder.hpp"

#include <ATen/ATen.h>

namespace selfcal {

Decoder::Decoder(const Model& model, int64_t rows, int64_t length, LayerRun layers, int64_t slots)
    : model_(model), layers_(layers) {
  outer_ = model.read_outer({.embedding = begins(), .head = ends()});
  for (int64_t layer = layers.first; layer < layers.end; ++layer)
    blocks_.push_back(place(model.read_block(layer), model.device()));
  caches_.resize(static_cast<size_t>(slots));
  for (auto& slot : caches_)
    for (int64_t layer = layers.first; layer < layers.end; ++layer)
      slot.push_back(model.make_cache(rows, length));
}

at::Tensor Decoder::embed(const StepInput& input) const {
  return model_.embed(input.tokens, outer_, input.positions);
}

at::Tensor Decoder::step(at::Tensor hidden, const at::Tensor& positions, int64_t slot) {
  auto& caches = caches_.at(static_cast<size_t>(slot));
  hidden = hidden.to(model_.device().memory);
  const at::Tensor places = positions.to(model_.device().memory);
  for (size_t i = 0; i < blocks_.size(); ++i)
    hidden = model_.block(layers_.first + static_cast<int64_t>(i))
                 .step(hidden, places, caches[i], blocks_[i]);
  return hidden;
}

at::Tensor Decoder::logits(const at::Tensor& hidden) const {
  return model_.logits(hidden, outer_).to(at::kCPU);
}

}  // namespace selfcal
