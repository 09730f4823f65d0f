// The end of a job: the gathered checkpoint, exports, evaluation and the report.
#pragma once
#include "pipeline/job.hpp"

namespace selfcal {

/// Collective over the world, after every layer is committed.
void finish_job(Job& job, TimeAccount& time);

/// Whether an earlier run has finished the job as it is configured now, exports and evaluation
/// included. Looks at files; for one rank.
bool is_finished(const Job& job);

}  // namespace selfcal
