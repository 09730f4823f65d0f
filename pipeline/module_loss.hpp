// What a scale does to the output of a whole module: the loss of AWQ's published search.
#pragma once
#include "pipeline/leaf_states.hpp"
#include "stages/solve/method.hpp"

namespace selfcal {

/// One scale pair's search in a block; borrows everything it is given.
class ModuleLoss {
 public:
  /// `states`: as they are where the pair's tap is read. `weights`: of the dense block, in host
  /// memory. `settings`: of the pair's consumers, in their order.
  ModuleLoss(const LayerWork& work, const Block& block, const LeafStates& states,
             const BlockWeights& weights, const ScalePair& pair,
             std::vector<MethodSettings> settings);

  /// For each candidate the sum of |y' - y|^2, float64 [candidates]: y what the inspected module
  /// gives with the dense weights, y' with its consumers rounded behind the scale, over all tokens
  /// of one leaf in every `step`. scales: float32 [candidates, columns]. Collective over the team;
  /// every rank gets the same bits, whoever has the leaves. A rank holds one leaf's outputs and one
  /// candidate's weights at a time.
  at::Tensor operator()(const at::Tensor& scales, int64_t step) const;

  /// One leaf in so many tells the better candidates from the others.
  int64_t step() const;

 private:
  BlockWeights with_rounded(const at::Tensor& scale) const;
  std::vector<double> losses_of_leaf(size_t leaf, const at::Tensor& scales) const;

  const LayerWork& work_;
  const Block& block_;
  const LeafStates& states_;
  const BlockWeights& weights_;
  const ScalePair& pair_;
  std::vector<MethodSettings> settings_;
};

}  // namespace selfcal
