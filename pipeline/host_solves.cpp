#include "pipeline/host_solves.hpp"

#include <fmt/format.h>

#include <map>

#include "base/log.hpp"
#include "stages/solve/device_feedback.hpp"

namespace selfcal {

std::vector<std::string> host_solves(const RunConfig& config,
                                     const std::vector<NamedLinear>& linears) {
  std::map<std::string, int64_t> layers;  // by reason
  int64_t all = 0;
  for (const auto& linear : linears) {
    const auto settings = settings_for(config, linear.name);
    if (!settings) continue;
    ++all;
    if (const auto reason = reason_for_host(*settings)) ++layers[*reason];
  }
  std::vector<std::string> lines;
  for (const auto& [reason, count] : layers)
    lines.push_back(fmt::format("{} of {} layers: {}", count, all, reason));
  return lines;
}

void log_host_solves(const RunConfig& config, const std::vector<NamedLinear>& linears) {
  for (const auto& line : host_solves(config, linears))
    log::info("job {}: solved on the host's threads: {}", config.name, line);
}

}  // namespace selfcal
