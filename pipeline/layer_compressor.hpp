// One decoder block compressed by a team: statistics, factor and rows of each stage, then the
// stage's outputs.
#pragma once
#include <functional>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "comm/communicator.hpp"
#include "comm/shared_stop.hpp"
#include "pipeline/config.hpp"
#include "pipeline/hidden_state.hpp"
#include "pipeline/leaves.hpp"
#include "pipeline/phase_timer.hpp"
#include "pipeline/tap_statistics.hpp"
#include "pipeline/team_solve.hpp"
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
  const SharedStop& stop;
  PhaseTimer& timer;
  SolvePace& pace;
  kernels::Context context;
  int64_t tokens = 0;                 // of all leaves of all ranks
  std::span<const Leaf> leaves = {};  // this rank's
  LeafMemory memory = LeafMemory::keep;
  std::function<void()> between_stages = {};     // what must not wait for a block's end; collective
  std::function<void()> between_leaves = {};     // on this rank alone: of a forward
  std::function<void()> before_last_stage = {};  // the same, of a block: its widest input is next
  std::span<const double> block_sparsity = {};   // by layer, where it is weighed by outliers
};

struct CompressedBlock {
  std::map<std::string, CompressedLinear> linears;  // by full tensor name
  std::map<std::string, at::Tensor> changed;        // other tensors that a method rewrote (AWQ)
};

/// Compresses block `layer`; collective over the team. `hidden` holds this rank's leaves, which may
/// be on their way (the first pass takes them one by one), and becomes the block's outputs (of the
/// compressed block, or of the dense one with dense propagation). Throws Stopped on all ranks when
/// one wants to stop.
CompressedBlock compress_layer(const LayerWork& work, int64_t layer, BlockWeights weights,
                               HiddenStates& hidden);

/// What solvers need of a block whose weights stay as they are, for many jobs at once.
struct BlockStatistics {
  std::map<int, TapStatistics> taps;
  std::map<int, SharedFactors> factors;  // by tap: of the uses that were expected
};
using BlockNeeds = std::map<int, TapNeeds>;

/// What the job's linear layers in block `layer`, and AWQ's scales, need of the taps that they
/// read; none where a scale is chosen by the outputs of a module: such a block takes a pass of its
/// own.
std::optional<BlockNeeds> shared_needs(const Model& model, const RunConfig& config, int64_t layer);

/// One forward of the dense block, with the statistics of its taps taken on the way: the same
/// numbers as compress_layer() comes to with dense propagation. `hidden` becomes the block's
/// outputs. Collective over the team; throws Stopped as compress_layer() does.
BlockStatistics measure_block(const LayerWork& work, int64_t layer, const BlockWeights& weights,
                              const BlockNeeds& needs, HiddenStates& hidden);

/// A factor that several jobs ask for is found for the first of them: each job is announced here
/// before the first of them is compressed.
void expect_factors(const LayerWork& work, int64_t layer, const BlockWeights& weights,
                    BlockStatistics& statistics);

/// A job's part of a block that has been measured. Collective over the team.
CompressedBlock compress_measured(const LayerWork& work, int64_t layer, const BlockWeights& weights,
                                  BlockStatistics& statistics);

/// Leaves through a block with the given weights, all in the device's memory, one by one as they
/// come. Independent; may wait for them: within agree().
void forward_leaves(const Block& block, const BlockWeights& weights, std::span<HiddenState> hidden);

}  // namespace selfcal
