// A whole run, of one job or many: calibration, compression layer by layer, the gathered
// checkpoint, exports, report.
#pragma once
#include <vector>

#include "comm/communicator.hpp"
#include "comm/shared_stop.hpp"
#include "pipeline/config.hpp"

namespace selfcal {

/// What the run finds itself in; borrowed.
struct RunEnvironment {
  const Communicator& world;
  const SharedStop& stop;
  kernels::Context context;
  std::string device_kind = {};  // what decides the bits of a device that is not the CPU
  uint64_t device_memory = 0;    // bytes of the smallest GPU of a rank; 0: none, or not known
};

/// Collective over the world. Continues what the run directory holds of the same configuration.
///
/// Jobs with dense propagation that have model and calibration in common go through the layers
/// together; the others one after the other, with several shards as a wavefront. What is wrong
/// before the first job starts (a configuration, a model's header) ends the run. After that, an
/// error that all agree on fails its job and the others go on; at the end it is thrown as
/// AgreedError. Stopped is thrown on all ranks.
void compress(const std::vector<RunConfig>& jobs, const RunEnvironment& environment);

/// Collective over the world: the calibration sets only.
void generate(const std::vector<RunConfig>& jobs, const RunEnvironment& environment);

}  // namespace selfcal
