// The end of a job: the gathered checkpoint, exports, evaluation and the report.
#pragma once
#include "pipeline/shard.hpp"

namespace selfcal {

/// Collective over the world, after every layer is committed.
void finish_job(const Session& session, const Job& job, const std::vector<LayerOutcome>& outcomes);

}  // namespace selfcal
