// The plan of all jobs of a run, which share one grid of ranks.
#pragma once
#include <vector>

#include "pipeline/plan_jobs.hpp"

namespace selfcal {

struct JobToPlan {
  RunConfig config;
  ModelSizes sizes;
  Machine machine;
  int sharing = 1;  // jobs_sharing()
};

/// Plans in the order of the jobs, all on the grid that the first one's configuration asks for.
/// What it leaves open is chosen as make_plan() does, but for all jobs together, by
/// seconds_beside_others(): several shards may be worth it for sequential jobs that follow each
/// other through them, which one of them alone gains nothing from. The first plan's `rejected` has
/// the other grids, with the seconds of all jobs. Errors as make_plan()'s, naming the job where
/// there are several.
std::vector<PlannedJob> plan_run(const std::vector<JobToPlan>& jobs, int ranks);

}  // namespace selfcal
