// The end of a job: the gathered checkpoint, exports, evaluation and the report.
#pragma once
#include "pipeline/text_losses.hpp"

namespace selfcal {

/// Collective over the world, after every layer is committed. `losses`: of the whole run.
void finish_job(Job& job, TimeAccount& time, TextLosses& losses);

/// Whether an earlier run has finished the job as it is configured now, exports and evaluation
/// included. Looks at files; for one rank.
bool is_finished(const Job& job);

}  // namespace selfcal
