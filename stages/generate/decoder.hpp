// Decodes with a run of a model's layers: all of them in a generator of one rank, a part of them in
// each rank of a deeper one.
#pragma once
#include <vector>

#include "stages/generate/micro_batch.hpp"
#include "stages/model/model.hpp"

namespace selfcal {

/// Layers [first, end).
struct LayerRun {
  int64_t first = 0;
  int64_t end = 0;
};

/// Holds its layers' weights in the compute dtype, the outer tensors where its run begins or ends
/// the model, and caches for `slots` batches in flight of `rows` sequences each. Independent; the
/// bits of a step do not depend on how the layers are cut.
class Decoder {
 public:
  /// Reads the weights, a block at a time. `model` outlives the decoder.
  Decoder(const Model& model, int64_t rows, int64_t length, LayerRun layers, int64_t slots = 1);

  bool begins() const { return layers_.first == 0; }
  bool ends() const { return layers_.end == model_.shape().layers; }

  /// Of a run that begins the model: hidden [rows, hidden].
  at::Tensor embed(const StepInput& input) const;
  /// Through the layers of this run, from any memory into the device's; the step enters the caches
  /// of slot `slot` at `positions`.
  at::Tensor step(at::Tensor hidden, const at::Tensor& positions, int64_t slot = 0);
  /// Of a run that ends the model: float32 [rows, vocabulary], in host memory.
  at::Tensor logits(const at::Tensor& hidden) const;

  const BlockWeights& block_weights(int64_t layer) const {
    return blocks_.at(static_cast<size_t>(layer - layers_.first));
  }
  const OuterWeights& outer_weights() const { return outer_; }

 private:
  const Model& model_;
  LayerRun layers_;
  OuterWeights outer_;
  std::vector<BlockWeights> blocks_;
  std::vector<std::vector<KeyValueCache>> caches_;  // by slot, by layer
};

}  // namespace selfcal
