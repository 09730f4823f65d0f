#include "pipeline/host_solves.hpp"

#include <fmt/format.h>

#include <map>

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

}  // namespace selfcal
