// Many ranks sample one calibration set: micro-batches are dealt to generators and stream to rank 0
// as they finish.
#pragma once
#include <functional>
#include <memory>
#include <set>

#include "base/stop_signal.hpp"
#include "comm/communicator.hpp"
#include "pipeline/phase_timer.hpp"
#include "stages/generate/generator.hpp"

namespace selfcal {

struct SamplingHooks {
  /// Called on the rank that sampled a micro-batch, with the generator that did.
  std::function<void(const MicroBatch&, const Generator&)> on_sampled;
  /// Called on rank 0 for each micro-batch as it arrives, in any order.
  std::function<void(const MicroBatch&)> on_arrived;
  /// Called on rank 0 now and then: tokens sampled so far by all ranks.
  std::function<void(int64_t)> on_progress;
};

/// Collective over `world`. Samples the micro-batches 0 .. micro_batches(settings) - 1 that are not
/// in `done`; generator_of(k) names the rank that samples micro-batch k. make_generator is called
/// on ranks that have work only. Throws Stopped on every rank when one wants to stop: what has
/// arrived by then was given to on_arrived.
void sample_together(const Communicator& world, const CalibrationSettings& settings,
                     const std::set<int64_t>& done, const std::function<int(int64_t)>& generator_of,
                     const std::function<std::unique_ptr<Generator>()>& make_generator,
                     const SamplingHooks& hooks, const StopSignal& stop, PhaseTimer& timer);

}  // namespace selfcal
