// A finished run as a model: the dense checkpoint with its committed layers in place.
#pragma once
#include "stages/evaluate/streamed_forward.hpp"
#include "storage/run_directory.hpp"

namespace selfcal {

/// Weights of block `layer` as compressed, in the model's compute dtype: with the run's dtype, what
/// propagation used. A missing or damaged layer is ExitCode::data.
BlockSource compressed_blocks(const Model& model, const JobDirectory& job);

}  // namespace selfcal
