#include <fmt/format.h>

#include <algorithm>
#include <span>
#include <tuple>

#include "pipeline/host_solves.hpp"
#include "pipeline/leaves.hpp"
#include "pipeline/plan.hpp"
#include "pipeline/progress.hpp"
#include "stages/generate/micro_batch.hpp"

namespace selfcal {
namespace {

std::string counted(int64_t count, const char* what) {
  return fmt::format("{} {}{}", count_text(count), what, count == 1 ? "" : "s");
}

/// What was weighed besides, the fastest of it first.
std::string rejected_layouts(const Plan& plan) {
  constexpr size_t most_lines = 8;
  std::vector<RejectedLayout> rejected = plan.rejected;
  std::ranges::stable_sort(rejected, {}, &RejectedLayout::seconds);
  std::string text;
  for (const auto& other : std::span(rejected).first(std::min(most_lines, rejected.size())))
    text += fmt::format(
        "  not        {}: {}{}\n", other.layout,
        other.seconds > 0 ? duration_text(other.seconds) + ", " : "",
        memory_text(other.memory) + " a rank" + (other.fits ? "" : ", more than it may use"));
  if (rejected.size() > most_lines)
    text += fmt::format("  nor        {} slower ones\n", rejected.size() - most_lines);
  return text;
}

/// Where rows are solved.
std::string solves_text(const RunConfig& config, const ModelSizes& model) {
  const auto lines = host_solves(config, model.linears);
  std::string text = lines.empty() ? "solves       on the device\n" : "";
  for (const auto& line : lines)
    text += fmt::format("solves       on the host's threads: {}\n", line);
  return text;
}

std::string heading(const Plan& plan, const RunConfig& config, const ModelSizes& model) {
  const auto& calibration = config.calibration;
  const int64_t batches = micro_batches(calibration);
  const auto leaves =
      cut_leaves(calibration.sequences, calibration.length, calibration.micro_batch).size();
  std::string text = fmt::format(
      "model        {}: {}, {} of {:.2f} M weights in {} tensors, {:.2f} G in all, {}\n",
      config.model.string(), model.shape.architecture, counted(model.shape.layers, "layer"),
      static_cast<double>(model.block_parameters) / 1e6, model.block.parameters.size(),
      static_cast<double>(model.shape.layers * model.block_parameters + model.outer_parameters) /
          1e9,
      to_text(model.shape.compute_dtype));
  const std::string source =
      calibration.source == CalibrationSource::self
          ? fmt::format("sampled in {}",
                        batches == 1 ? "1 micro-batch" : fmt::format("{} micro-batches", batches))
          : "given";
  text += fmt::format("calibration  {} of {} tokens, {}; {} for statistics\n",
                      counted(calibration.sequences, "sequence"), count_text(calibration.length),
                      source, leaves == 1 ? "1 leaf" : fmt::format("{} leaves", leaves));
  text += fmt::format("layout       {}, {} a rank\n", plan.layout.describe(),
                      counted(plan.threads, "thread"));
  if (plan.on_device) text += solves_text(config, model);
  return text + rejected_layouts(plan);
}

/// Ranks that follow each other and do as much share a line.
std::string rank_table(const Plan& plan) {
  std::string text =
      fmt::format("\nrank         layers       tensors  micro-batches  leaves  {:>9}  part\n",
                  plan.on_device ? "on a GPU" : "memory");
  const auto alike = [](const RankPlan& a, const RankPlan& b) {
    return std::tie(a.role, a.first_layer, a.layers, a.micro_batches, a.leaves, a.memory) ==
           std::tie(b.role, b.first_layer, b.layers, b.micro_batches, b.leaves, b.memory);
  };
  for (size_t first = 0, end = 0; first < plan.ranks.size(); first = end) {
    const RankPlan& rank = plan.ranks[first];
    while (end < plan.ranks.size() && alike(rank, plan.ranks[end])) ++end;
    text += fmt::format(
        "{:<11}  {:<11}  {:>7}  {:>13}  {:>6}  {:>9}  {}\n",
        end - first == 1 ? fmt::to_string(first) : fmt::format("{}-{}", first, end - 1),
        fmt::format("{}-{}", rank.first_layer, rank.first_layer + rank.layers - 1), rank.tensors,
        rank.micro_batches, rank.leaves, memory_text(rank.memory), rank.role);
  }
  return text;
}

std::string items_text(const MemoryUse& use) {
  std::string text;
  for (const auto& item : use.items)
    text += fmt::format("  {:<40} {:>9}{}\n", item.what, memory_text(item.bytes),
                        item.shared_by_team && item.bytes > 0 ? "  1/team" : "");
  uint64_t shared = 0;
  for (const auto& item : use.items) shared += item.shared_by_team ? item.bytes : 0;
  return text + fmt::format("  {:<40} {:>9}  {} of it falls as 1/team, the rest does not\n", "all",
                            memory_text(use.total()), memory_text(shared));
}

/// Items of the rank that needs most, at the time that it does.
std::string memory_table(const Plan& plan) {
  const RankPlan& largest = plan.largest_rank();
  const auto& use = *std::ranges::max_element(largest.uses, {}, &MemoryUse::total);
  std::string text = fmt::format("\nmemory of rank {}{} while it {}\n", largest.rank,
                                 plan.on_device ? "'s GPU" : "", use.when) +
                     items_text(use);
  if (plan.memory_limit > 0)
    text += fmt::format("  {:<40} {:>9}{}\n", plan.on_device ? "a GPU has" : "a rank may use",
                        memory_text(plan.memory_limit),
                        largest.memory > plan.memory_limit ? "  LESS THAN IT NEEDS" : "");
  if (!plan.on_device) return text;
  const auto most = [](const RankPlan& rank) {
    return std::ranges::max_element(rank.host_uses, {}, &MemoryUse::total)->total();
  };
  const RankPlan& on_host = *std::ranges::max_element(plan.ranks, {}, most);
  const auto& beside = *std::ranges::max_element(on_host.host_uses, {}, &MemoryUse::total);
  return text +
         fmt::format("\nmemory of rank {} on the host while it {}\n", on_host.rank, beside.when) +
         items_text(beside);
}

std::string time_table(const Plan& plan) {
  std::string text =
      "\nexpected seconds, the busiest rank of each phase" +
      (plan.machine.device.empty()
           ? std::string(plan.on_device ? ", on this machine's CPU: a GPU's speed is "
                                          "not measured here"
                                        : "")
           : fmt::format(", at the published peak rates of {} (not measured; expect "
                         "more)",
                         plan.machine.device)) +
      "\n";
  for (size_t phase = 0; phase < phase_names.size(); ++phase)
    if (plan.seconds[phase] > 0)
      text += fmt::format("  {:<12} {:>9.1f}\n", phase_names[phase], plan.seconds[phase]);
  text += fmt::format("  {:<12} {:>9.1f}  ({})\n", "all", plan.total_seconds,
                      duration_text(plan.total_seconds));
  const Machine& machine = plan.machine;
  return text + fmt::format("files at {} {:.0f} MB/s a host and {:.0f} ms a commit\n",
                            machine.knows_disk ? "a measured" : "an assumed", machine.disk / 1e6,
                            machine.commit * 1e3);
}

}  // namespace

std::string to_text(const Plan& plan, const RunConfig& config, const ModelSizes& model) {
  return heading(plan, config, model) + rank_table(plan) + memory_table(plan) + time_table(plan);
}

}  // namespace selfcal
