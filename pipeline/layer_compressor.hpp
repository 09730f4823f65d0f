// One decoder block compressed by a team: statistics, factor and rows of each stage, then the
// stage's outputs.
#pragma once
#include <map>
#include <string>
#include <vector>

#include "base/stop_signal.hpp"
#include "comm/communicator.hpp"
#include "pipeline/config.hpp"
#include "pipeline/phase_timer.hpp"
#include "stages/model/model.hpp"

namespace selfcal {

/// Whether the states of a rank's leaves are held between the passes of a stage, or computed again.
/// Same bytes.
enum class LeafMemory { keep, recompute };

/// What a rank needs for working on blocks; borrowed.
struct LayerWork {
  const Model& model;
  const RunConfig& config;
  const Communicator& team;
  const StopSignal& stop;
  PhaseTimer& timer;
  kernels::Context context;
  int64_t tokens = 0;  // of all leaves of all ranks
  LeafMemory memory = LeafMemory::keep;
};

struct CompressedBlock {
  std::map<std::string, CompressedLinear> linears;  // by full tensor name
  std::map<std::string, at::Tensor> changed;        // other tensors that a method rewrote (AWQ)
};

/// Compresses block `layer`; collective over the team. `hidden` holds this rank's leaves, each
/// [sequences, tokens, hidden], and becomes the block's outputs (of the compressed block, or of the
/// dense one with dense propagation). Throws Stopped on all ranks when one wants to stop.
CompressedBlock compress_layer(const LayerWork& work, int64_t layer, BlockWeights weights,
                               std::vector<at::Tensor>& hidden);

/// Leaves through a block with the given weights. Independent.
void forward_leaves(const Block& block, const BlockWeights& weights,
                    std::vector<at::Tensor>& hidden);

}  // namespace selfcal
