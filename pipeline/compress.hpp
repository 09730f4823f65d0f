// The whole job: calibration, compression layer by layer, the gathered checkpoint, exports, report.
#pragma once
#include "base/stop_signal.hpp"
#include "comm/communicator.hpp"
#include "pipeline/config.hpp"

namespace selfcal {

/// A stop that every rank has agreed on.
class AgreedStop : public Stopped {};

/// What the run finds itself in; borrowed.
struct RunEnvironment {
  const Communicator& world;
  const StopSignal& stop;
  kernels::Context context;
};

/// Collective over the world. Continues what the run directory holds of the same configuration.
void compress(const RunConfig& config, const RunEnvironment& environment);

/// Collective over the world: the calibration set only.
void generate(const RunConfig& config, const RunEnvironment& environment);

}  // namespace selfcal
