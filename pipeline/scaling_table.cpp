#include <fmt/format.h>

#include <algorithm>

#include "base/error.hpp"
#include "pipeline/layer_cost.hpp"
#include "pipeline/leaves.hpp"
#include "pipeline/plan.hpp"
#include "stages/generate/micro_batch.hpp"

namespace selfcal {
namespace {

double compressing_seconds(const Plan& plan) {
  return plan.total_seconds - plan.seconds[static_cast<size_t>(Phase::sample)];
}

/// That a rank sends to add up statistics, over all layers of its shard.
double reduced_bytes(const Plan& plan, const RunConfig& config, const ModelSizes& model) {
  const LayerKinds kinds = layer_kinds(config, model);
  const LayerCost cost(config, model, plan.machine, plan.threads);
  double bytes = 0;
  for (int64_t layer = 0; layer < plan.layout.first_layer(1); ++layer)
    bytes += cost.reduced_bytes(kinds.settings[kinds.of_layer[static_cast<size_t>(layer)]],
                                std::ssize(plan.layout.team_of(0)));
  return bytes;
}

/// What more ranks would not cure, or the phase that takes most.
std::string limit_of(const Plan& plan, const RunConfig& config, const ModelSizes& model) {
  const auto& calibration = config.calibration;
  const auto leaves =
      cut_leaves(calibration.sequences, calibration.length, calibration.micro_batch).size();
  std::vector<std::string> limits;
  if (calibration.source == CalibrationSource::self &&
      plan.layout.replicas() > micro_batches(calibration))
    limits.push_back(fmt::format("{} micro-batches for {} replicas", micro_batches(calibration),
                                 plan.layout.replicas()));
  if (plan.layout.team_of(0).size() > leaves)
    limits.push_back(
        fmt::format("{} leaves for a team of {}", leaves, plan.layout.team_of(0).size()));
  // What more ranks leave as it is, where it is more than a little: steps of one rank while its
  // team waits, and sums that are as large for any team.
  const auto seconds_of = [&](Phase phase) { return plan.seconds[static_cast<size_t>(phase)]; };
  constexpr double little = 0.05;
  if (plan.layout.ranks() > 1) {
    if (const double serial = seconds_of(Phase::factorise); serial > little * plan.total_seconds)
      limits.push_back(fmt::format("factors {:.1f} s", serial));
    if (seconds_of(Phase::reduce) > little * plan.total_seconds)
      limits.push_back(
          fmt::format("reduce {:.0f} GB a rank", reduced_bytes(plan, config, model) / 1e9));
  }
  const auto most = std::ranges::max_element(plan.seconds);
  limits.push_back(fmt::format("{} {:.0f} %",
                               phase_names[static_cast<size_t>(most - plan.seconds.begin())],
                               100 * *most / plan.total_seconds));
  return fmt::format("{}", fmt::join(limits, "; "));
}

}  // namespace

std::string scaling_table(const RunConfig& config, const ModelSizes& model,
                          const std::vector<int>& ranks, const Machine& machine) {
  std::string text = fmt::format(
      "by the cost model at {} rates; nothing here was run\n"
      "ranks  replicas x depth  shards x team  memory a rank    sample s  compress s     total s  "
      "efficiency  limits\n",
      machine.device.empty() ? "this machine's measured"
                             : fmt::format("the published peak of {}", machine.device));
  double reference = 0;  // rank-seconds of the first that fits
  for (const int count : ranks) {
    try {
      const Plan plan = make_plan(config, model, count, machine);
      if (reference == 0) reference = plan.total_seconds * count;
      text += fmt::format(
          "{:>5}  {:>16}  {:>13}  {:>13}  {:>10.1f}  {:>10.1f}  {:>10.1f}  {:>8.0f} %  {}\n", count,
          fmt::format("{} x {}", plan.layout.replicas(), plan.layout.depth()),
          fmt::format("{} x {}", plan.layout.shards(), plan.layout.team_of(0).size()),
          memory_text(plan.largest_rank().memory), plan.seconds[static_cast<size_t>(Phase::sample)],
          compressing_seconds(plan), plan.total_seconds,
          100 * reference / (plan.total_seconds * count), limit_of(plan, config, model));
    } catch (const Error& error) {
      text += fmt::format("{:>5}  {}\n", count, error.what());
    }
  }
  return text;
}

}  // namespace selfcal
