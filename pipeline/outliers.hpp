// Outlier-weighed layerwise sparsity of jobs: outliers of the dense model are counted once, before
// the first layer is compressed.
#pragma once
#include <span>

#include "pipeline/job.hpp"

namespace selfcal {

/// Sets Job::block_sparsity of those that ask for it and have none yet; nothing is done for the
/// others. All have model and calibration in common, whose tokens these are. Counts that an earlier
/// run has left in a job's folder are read; for all other jobs together the dense model is passed
/// through once, the leaves dealt over all ranks whatever the shards. Collective over the world;
/// throws Stopped on all ranks when one wants to stop.
void weigh_blocks(std::span<Job* const> jobs, const std::vector<Leaf>& leaves,
                  const at::Tensor& tokens);

}  // namespace selfcal
