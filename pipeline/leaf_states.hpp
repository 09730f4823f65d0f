// The states of a rank's leaves as they advance through a block, and what is measured on them.
#pragma once
#include <functional>
#include <string>
#include <vector>

#include "pipeline/layer_compressor.hpp"

namespace selfcal {

/// A block's weights in the device's memory, renewed where a tensor of `source` was replaced.
class PlacedWeights {
 public:
  /// `source` is borrowed.
  PlacedWeights(const BlockWeights& source, const kernels::Device& device)
      : source_(source), device_(device) {}
  const BlockWeights& current();

 private:
  const BlockWeights& source_;
  kernels::Device device_;
  BlockWeights taken_, placed_;
};

/// Borrows everything it is given: leaves in the device's memory, weights in the host's. A leaf is
/// taken through the block as far as it should be when it is looked at: those before it are worked
/// on while it is on its way, and ranks do not wait for each other between a forward and what is
/// measured on its outputs.
class LeafStates {
 public:
  LeafStates(const LayerWork& work, int64_t layer, const HiddenStates& hidden,
             const BlockWeights& weights)
      : work_(work),
        layer_(layer),
        block_(work.model.block(layer)),
        hidden_(hidden),
        weights_(weights, work.context.device) {}

  /// Calls visit(state) with that of one of the rank's leaves. May wait for it: within agree().
  void look_at(size_t leaf, const std::function<void(const State&)>& visit) const;
  /// Calls visit(input) with what layers read at a tap, for every leaf, in order; errors name it.
  /// The same.
  void for_each(int tap, const std::function<void(const at::Tensor&)>& visit) const;
  const Tap& tap(int index) const { return block_.spec().taps.at(static_cast<size_t>(index)); }
  /// Lets the states be behind the linear layers of one more stage. Independent; the weights of
  /// that stage stay as they are now.
  void advance() { ++stage_; }
  /// Replaces leaves, which may be the block's inputs, by its outputs, one after the other; the
  /// states are used up. Collective.
  void finish(HiddenStates& leaves);

 private:
  struct Kept {
    State state;
    int stage = 0;  // it has been through so many
  };
  State& kept(size_t leaf) const;
  State computed_again(size_t leaf) const;
  void between_leaves() const;

  const LayerWork& work_;
  int64_t layer_;
  const Block& block_;
  const HiddenStates& hidden_;
  mutable PlacedWeights weights_;
  mutable std::vector<Kept> kept_;  // where they are, of the leaves that are begun
  int stage_ = 0;                   // a state is through so many when it is looked at
};

/// Of a block's tap, for errors: "input of model.layers.3.mlp.gate_proj".
std::string input_name(const Model& model, int64_t layer, int tap);

/// Collective.
TapStatistics measure_tap(const LayerWork& work, const LeafStates& states, int tap, TapNeeds needs);

}  // namespace selfcal
