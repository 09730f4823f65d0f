// GPUs of a run.
#pragma once
#include "comm/communicator.hpp"

namespace selfcal {

/// Collective. Where GPUs are visible: loads the GPU module and logs which rank has which GPU, or
/// why none can be used. Says nothing on machines without.
void report_gpus(const Communicator& world);

}  // namespace selfcal
