// What a device leaves to the host's threads.
#pragma once
#include <string>
#include <vector>

#include "pipeline/config.hpp"

namespace selfcal {

/// Of the linear layers that the job compresses, those that a device's kernels do not solve: a line
/// for each reason, as in "210 of 210 layers: awq has no kernel".
std::vector<std::string> host_solves(const RunConfig& config,
                                     const std::vector<NamedLinear>& linears);

/// The same, told at the start of a run.
void log_host_solves(const RunConfig& config, const std::vector<NamedLinear>& linears);

}  // namespace selfcal
