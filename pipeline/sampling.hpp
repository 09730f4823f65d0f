// Many ranks sample one calibration set: micro-batches are dealt to the replicas and stream to rank
// 0 as they finish.
#pragma once
#include <functional>
#include <set>

#include "pipeline/session.hpp"
#include "stages/generate/generator.hpp"

namespace selfcal {

struct SamplingHooks {
  /// Called on the rank that sampled a micro-batch alone, with the generator that did.
  std::function<void(const MicroBatch&, const Generator&)> on_sampled;
  /// Called on rank 0 for each micro-batch as it arrives, in any order.
  std::function<void(const MicroBatch&)> on_arrived;
  /// Called on rank 0 now and then: tokens sampled so far by all ranks.
  std::function<void(int64_t)> on_progress;
};

/// Collective over the world. Samples the micro-batches 0 .. micro_batches - 1 that are not in
/// `done`, each by the replica that the layout names. Throws Stopped on every rank when one wants
/// to stop: what has arrived by then was given to on_arrived.
void sample_together(const Session& session, const std::set<int64_t>& done,
                     const SamplingHooks& hooks);

}  // namespace selfcal
