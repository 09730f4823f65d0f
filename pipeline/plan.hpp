// What a run will take, before it is started: which rank does what, bytes of memory by item,
// seconds by phase. A pure function of the configuration, the model's header, the ranks and the
// machine.
#pragma once
#include <string>
#include <vector>

#include "pipeline/cost_model.hpp"
#include "pipeline/memory_model.hpp"

namespace selfcal {

struct RankPlan {
  int rank = 0;
  std::string role;         // "samples, then compresses"
  int64_t first_layer = 0;  // of its shard
  int64_t layers = 0;
  int64_t tensors = 0;        // linear layers of its shard
  int64_t micro_batches = 0;  // that it takes part in
  int64_t leaves = 0;
  std::vector<MemoryUse> uses;  // of its GPU's memory where the run is on GPUs, else the host's
  uint64_t memory = 0;          // bytes of the largest use
  std::vector<MemoryUse> host_uses;  // of the host's memory beside a GPU
};

/// A layout that was weighed and not taken.
struct RejectedLayout {
  std::string layout;
  double seconds = 0;   // 0: the machine's rates are not known
  uint64_t memory = 0;  // of the rank that needs most
  bool fits = true;
};

struct Plan {
  Layout layout;
  int threads = 1;  // of a rank
  std::vector<RankPlan> ranks;
  PhaseSeconds seconds{};  // of the whole run, by phase
  double total_seconds = 0;
  PhaseSeconds outlier_seconds{};     // of them, the pass that counts outliers
  std::vector<double> shard_parts{};  // what part of the compression each shard's layers are
  uint64_t memory_limit = 0;          // bytes a rank may use; 0: not known
  bool on_device = false;             // memory is that of GPUs
  Machine machine;
  /// Whether the inputs of a stage are held while they are needed or computed again: a rank that
  /// would need too much recomputes.
  bool keeps_states = true;
  /// Micro-batches that a generator of one rank samples side by side: fewer where memory is short.
  int64_t sampled_at_once = 1;
  std::vector<RejectedLayout> rejected;  // of those that the configuration leaves open

  const RankPlan& largest_rank() const;
};

/// What the configuration leaves open in the layout is chosen as the fastest on typical_machine()
/// (or on the device of `machine`) that fits, so that a plan and a run choose alike; near ties go
/// to the simplest. ExitCode::config when the counts do not fit the ranks, or a rank needs more
/// than layout.memory (or the device's memory) allows even when it recomputes; the message has the
/// numbers, and the smallest generator depth and team that would do. Without rates there are no
/// seconds.
/// `sharing`: jobs that have one forward and its statistics with this one, itself among them.
/// `followed`: other jobs go through the shards before or behind this one.
Plan make_plan(const RunConfig& config, const ModelSizes& model, int ranks, const Machine& machine,
               int sharing = 1, bool followed = false);

/// A table for people.
std::string to_text(const Plan& plan, const RunConfig& config, const ModelSizes& model);
/// The same for machines.
std::string to_json(const Plan& plan);

/// One line for each number of ranks: layout, memory, seconds, efficiency against the first that
/// fits, and what limits it. By the model: nothing in it was run.
std::string scaling_table(const RunConfig& config, const ModelSizes& model,
                          const std::vector<int>& ranks, const Machine& machine);

}  // namespace selfcal
