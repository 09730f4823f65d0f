// Outlier-weighed layerwise sparsity of jobs: outliers of the dense model are counted once, before
// the first layer is compressed.
#pragma once
#include <deque>

#include "pipeline/job.hpp"

namespace selfcal {

/// Sets Job::block_sparsity of all jobs that ask for it and have the model and the calibration set
/// of `front` (whose tokens are there). Counts that an earlier run has left in a job's folder are
/// read; for all other jobs together the dense model is passed through once, the leaves dealt over
/// all ranks whatever the shards. Collective over the world; throws Stopped on all ranks when one
/// wants to stop.
void weigh_blocks(std::deque<Job>& jobs, const Job& front);

}  // namespace selfcal
