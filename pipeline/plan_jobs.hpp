// The plan of a run of many jobs: each job's own, and what it adds to those before it.
#pragma once
#include <optional>
#include <vector>

#include "pipeline/plan.hpp"

namespace selfcal {

struct PlannedJob {
  RunConfig config;
  ModelSizes sizes;
  Plan plan;
  /// Of the compressors alone, while the generators of a split layout write the texts of later
  /// jobs; absent where that does not fit or is not asked for.
  std::optional<Plan> while_writing = {};

  /// Bytes of the rank that needs most at any time.
  uint64_t most_memory() const;
};

/// Whether generators write on while jobs are compressed: they have a text to write that is not the
/// first job's, and the compressors can work without them.
bool write_ahead(const std::vector<PlannedJob>& jobs);

/// How many of `jobs` have one forward and its statistics with `job`, which is one of them: 1 for
/// sequential propagation, and for AWQ by the outputs of modules, whose statistics are its own.
int jobs_sharing(const RunConfig& job, const std::vector<RunConfig>& jobs);

/// What each job adds to those before it. Jobs of one calibration sample it once; with dense
/// propagation they share its forward and statistics as jobs_sharing() has it; with sequential
/// propagation they follow each other through the shards as a wavefront. Where generators write
/// ahead, what a job waits for its text is not what that takes, but what is left of it when the
/// compressors come to the job; all ranks compress once the last text is written.
std::vector<double> seconds_beside_others(const std::vector<PlannedJob>& jobs);

/// The first job in full, then, where there are more, a line of each and their sum.
std::string to_text(const std::vector<PlannedJob>& jobs);
/// Of one job as it is; of many a map by their names.
std::string to_json(const std::vector<PlannedJob>& jobs);

}  // namespace selfcal
