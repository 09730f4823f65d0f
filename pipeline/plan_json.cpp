#include <nlohmann/json.hpp>

#include "pipeline/plan.hpp"

namespace selfcal {
namespace {

using nlohmann::ordered_json;

ordered_json items_of(const std::vector<MemoryUse>& uses) {
  ordered_json memory;
  for (const auto& use : uses)
    for (const auto& item : use.items) memory[use.when][item.what] = item.bytes;
  return memory;
}

ordered_json to_json(const RankPlan& rank) {
  ordered_json json = {{"rank", rank.rank},
                       {"role", rank.role},
                       {"first_layer", rank.first_layer},
                       {"layers", rank.layers},
                       {"micro_batches", rank.micro_batches},
                       {"leaves", rank.leaves},
                       {"memory", rank.memory},
                       {"memory_items", items_of(rank.uses)}};
  if (!rank.host_uses.empty()) json["host_memory_items"] = items_of(rank.host_uses);
  return json;
}

}  // namespace

std::string to_json(const Plan& plan) {
  ordered_json json;
  json["layout"] = plan.layout.describe();
  json["threads"] = plan.threads;
  json["device"] = plan.machine.device;
  json["total_seconds"] = plan.total_seconds;
  for (size_t phase = 0; phase < phase_names.size(); ++phase)
    json["seconds"][std::string(phase_names[phase])] = plan.seconds[phase];
  const HardwareRates& rates = plan.machine.rates;
  json["rates"] = {{"threads", rates.threads},
                   {"forward", rates.forward},
                   {"decode", rates.decode},
                   {"network", plan.machine.network},
                   {"latency", plan.machine.latency},
                   {"logits", rates.logits},
                   {"disk", plan.machine.disk},
                   {"commit", plan.machine.commit},
                   {"disk_is_measured", plan.machine.knows_disk}};
  for (const auto& [columns, width] : rates.by_width)
    json["rates"]["by_width"][std::to_string(columns)] = {{"sums", width.sums},
                                                          {"statistics", width.statistics},
                                                          {"factorise", width.factorise},
                                                          {"solve", width.solve},
                                                          {"panels", width.panels}};
  json["memory_limit"] = plan.memory_limit;
  json["memory_of"] = plan.on_device ? "GPU" : "host";
  json["keeps_states"] = plan.keeps_states;
  json["sampled_at_once"] = plan.sampled_at_once;
  json["ranks"] = ordered_json::array();
  for (const auto& rank : plan.ranks) json["ranks"].push_back(to_json(rank));
  json["rejected"] = ordered_json::array();
  for (const auto& other : plan.rejected)
    json["rejected"].push_back({{"layout", other.layout},
                                {"seconds", other.seconds},
                                {"memory", other.memory},
                                {"fits", other.fits}});
  return json.dump(2) + "\n";
}

}  // namespace selfcal
