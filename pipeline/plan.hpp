// What a run will take, before it is started: which rank does what, bytes of memory by item,
// seconds by phase. A pure function of the configuration, the model's header, the ranks and the
// machine.
#pragma once
#include <array>
#include <string>
#include <vector>

#include "pipeline/config.hpp"
#include "pipeline/layout.hpp"
#include "pipeline/phase_timer.hpp"
#include "pipeline/rates.hpp"

namespace selfcal {

/// What the plan needs to know of a model; all from headers.
struct ModelSizes {
  ModelShape shape;
  BlockSpec block;                  // of layer 0; the others are taken to be like it
  int64_t block_parameters = 0;     // entries of all tensors of a block
  int64_t outer_parameters = 0;     // embeddings, final norm, head
  std::vector<double> layer_costs;  // see layout.hpp
};
ModelSizes sizes_of(const Model& model);

/// The machine that a rank runs on, taken to be like this one.
struct Machine {
  int cores = 1;
  int ranks = 1;        // that share the cores and the memory
  uint64_t memory = 0;  // bytes; 0: not known
  HardwareRates rates;
  double network = 2e9;  // bytes/s between ranks; taken, not measured
  std::string device;    // the data sheet that the rates are of; empty: measured on this machine
};
/// Cores this process may use and the memory of this machine; rates are measured apart.
Machine this_machine(int ranks_on_it);

struct MemoryItem {
  std::string what;
  uint64_t bytes = 0;
};

/// What is in memory at one time.
struct MemoryUse {
  std::string when;  // "samples"
  std::vector<MemoryItem> items;
  uint64_t total() const;
};

struct RankPlan {
  int rank = 0;
  std::string role;         // "samples, then compresses"
  int64_t first_layer = 0;  // of its shard
  int64_t layers = 0;
  int64_t tensors = 0;  // linear layers of its shard
  int64_t micro_batches = 0;
  int64_t leaves = 0;
  std::vector<MemoryUse> uses;
  uint64_t memory = 0;  // bytes of the largest use
};

struct Plan {
  Layout layout;
  int threads = 1;  // of a rank
  std::vector<RankPlan> ranks;
  std::array<double, phase_names.size()> seconds{};  // of the whole run, by phase
  double total_seconds = 0;
  uint64_t memory_limit = 0;  // bytes a rank may use; 0: not known
  std::string device;         // see Machine
  /// Whether the inputs of a stage are held while they are needed or computed again: a rank that
  /// would need too much recomputes.
  bool keeps_states = true;
};

/// ExitCode::config when the counts do not fit the ranks, or a rank needs more than layout.memory
/// (or the device's memory) allows even when it recomputes; the message has the numbers, and the
/// smallest generator depth and team that would do. Without rates there are no seconds.
Plan make_plan(const RunConfig& config, const ModelSizes& model, int ranks, const Machine& machine);

/// A table for people.
std::string to_text(const Plan& plan, const RunConfig& config, const ModelSizes& model);

/// "412 MiB".
std::string memory_text(uint64_t bytes);

}  // namespace selfcal
