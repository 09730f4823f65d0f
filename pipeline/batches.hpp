// In what order the jobs of a run go through the shards, and which of them go together.
#pragma once
#include <deque>
#include <string>
#include <vector>

#include "pipeline/job.hpp"

namespace selfcal {

/// Jobs whose flows pass through the shards one behind the other, before any of them is finished.
struct Batch {
  std::vector<std::vector<Job*>> flows;
};

/// Dense jobs with one forward form a flow and a batch; sequential jobs are flows of one, all in
/// one batch where there are shards to keep busy.
std::vector<Batch> plan_batches(std::deque<Job>& jobs, int shards);

/// Without the flows whose jobs have all come to an end.
void drop_finished(std::vector<Batch>& batches);

/// For the report of jobs that share a forward.
std::string describe_sharing(const std::vector<Job*>& jobs);

}  // namespace selfcal
