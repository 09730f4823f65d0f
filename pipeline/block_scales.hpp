// AWQ's scales of a block, found by a team: as published, all of them on the block as it is, before
// any of its layers is rounded.
#pragma once
#include "pipeline/layer_compressor.hpp"

namespace selfcal {

/// Which inputs of linear layers a pass over the dense block measures.
enum class Measured {
  scaled,  // those that scales were found for
  every    // those of all layers that are compressed; the pass then ends with the block's outputs
};

struct ScaledBlock {
  std::vector<std::string> rewritten;  // names within the block of the tensors that were folded
  std::map<int, at::Tensor> hessians;  // by tap, of the inputs that the folded block gives
  HiddenStates outputs;                // of the dense block, with Measured::every
};

/// Finds a scale for every pair of the block all of whose consumers are AWQ's, the one with the
/// least squared error once they are rounded, of their own outputs or of the module's that they are
/// part of (MethodSettings::scale_loss), and folds it into `weights`.
/// The Hessian of x / s is D^-1 H D^-1, D = diag(s), but for the rounding of the producer to the
/// model's dtype: the published code divides the inputs that it kept in the same way. Nothing is
/// measured or rewritten where no pair is AWQ's. Collective over the team; every rank comes to the
/// same.
ScaledBlock scale_block(const LayerWork& work, int64_t layer, BlockWeights& weights,
                        const HiddenStates& hidden, Measured measured);

/// What scale_measured() needs of the block's inputs, by tap: nothing where no pair is AWQ's. None
/// where a scale is chosen by the outputs of a module, which takes a pass with states.
std::optional<std::map<int, TapNeeds>> scale_needs(const Model& model, const RunConfig& config,
                                                   int64_t layer);

/// scale_block() with Measured::every, but for the outputs, from what a pass over the dense block
/// has measured: the same bits. Where scale_needs() is something. Collective over the team.
ScaledBlock scale_measured(const LayerWork& work, int64_t layer, BlockWeights& weights,
                           const std::map<int, TapStatistics>& taps);

}  // namespace selfcal
