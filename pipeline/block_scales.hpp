// AWQ's scales of a block, found by a team: as published, all of them on the block as it is, before
// any of its layers is rounded.
#pragma once
#include "pipeline/layer_compressor.hpp"

namespace selfcal {

/// Finds a scale for every pair of the block all of whose consumers are AWQ's, the one with the
/// least tr(E H E^T) of the consumers' outputs once they are rounded, and folds it into `weights`.
/// Returns the names within the block of the tensors that it rewrote; none where nothing is AWQ's.
/// Collective over the team; every rank comes to the same.
std::vector<std::string> scale_block(const LayerWork& work, int64_t layer, BlockWeights& weights,
                                     const std::vector<at::Tensor>& hidden);

}  // namespace selfcal
