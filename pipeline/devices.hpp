// Accelerators that a run can be planned for without one at hand.
#pragma once
#include <string>

#include "pipeline/machine.hpp"
#include "stages/model/model.hpp"

namespace selfcal {

/// A machine of one device, one rank on it. Its rates are the published peaks of the data sheets,
/// turned into the units of HardwareRates: a run on it takes longer, and nothing here was measured.
/// `name`: h100, h200, a100; another is ExitCode::usage. `dtype`: what the model computes in.
Machine device_machine(const std::string& name, at::ScalarType dtype);

}  // namespace selfcal
