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
/// begun when it is first looked at, so that those before it are worked on while it is on its way.
class LeafStates {
 public:
  LeafStates(const LayerWork& work, const Block& block, const HiddenStates& hidden,
             const BlockWeights& weights)
      : work_(work), block_(block), hidden_(hidden), weights_(weights, work.context.device) {}

  /// Calls visit(state) with that of one of the rank's leaves. May wait for it: within agree().
  void look_at(size_t leaf, const std::function<void(const State&)>& visit) const;
  /// Calls visit(tap) for every leaf, in order. The same.
  void for_each(const std::string& tap, const std::function<void(const at::Tensor&)>& visit) const;
  /// Through the linear layers of `stage`, with the weights as they are now. Collective.
  void advance(int stage);
  /// Replaces leaves, which may be the block's inputs, by its outputs, one after the other; the
  /// states are used up. Collective.
  void finish(HiddenStates& leaves);

 private:
  State& kept(size_t leaf) const;
  State computed_again(size_t leaf) const;
  void between_leaves() const;

  const LayerWork& work_;
  const Block& block_;
  const HiddenStates& hidden_;
  mutable PlacedWeights weights_;
  mutable std::vector<State> states_;  // where they are kept, of the leaves that are begun
  int stage_ = 0;                      // stages that the states have been through: then all are
};

/// Collective.
TapStatistics measure_tap(const LayerWork& work, const LeafStates& states, const Tap& tap,
                          TapNeeds needs);

}  // namespace selfcal
