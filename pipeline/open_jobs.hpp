// What is known of each job of a run before it starts.
#pragma once
#include <deque>
#include <memory>
#include <optional>
#include <vector>

#include "pipeline/compress.hpp"
#include "pipeline/layer_compressor.hpp"
#include "pipeline/plan.hpp"

namespace selfcal {

struct OpenedJob {
  RunConfig config;  // as resolved by its model, whose header was checked against it
  std::shared_ptr<const Model> model;
  Plan plan;
  std::optional<Plan> while_writing;  // of the compressors, where generators write ahead
  Layout layout;                      // of the ranks that work together now
};

/// A job's configuration as its model resolves it, whose linear layers are checked against it, with
/// the size of the text that it is evaluated on. Independent.
RunConfig resolve_by(const Model& model, const RunConfig& given);

/// Independent; what is wrong with a job names it where there are several.
std::deque<OpenedJob> open_jobs(const std::vector<RunConfig>& given,
                                const RunEnvironment& environment);

/// What decides the bits of the arithmetic, which must be the same on all ranks: else
/// ExitCode::config. Collective.
std::string agree_on_numeric_kind(const Communicator& world, const std::string& device_kind);

LeafMemory leaf_memory(const Plan& plan);

/// Bytes of a rank of the run at any time of a job.
uint64_t planned_memory(const OpenedJob& job, int rank);

}  // namespace selfcal
