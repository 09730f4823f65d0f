#include "pipeline/run_plan.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <exception>
#include <numeric>

#include "base/error.hpp"
#include "pipeline/layout_options.hpp"

namespace selfcal {
namespace {

/// Counts that give every job of a run the grid of its first one.
LayoutSettings grid_of(const Layout& layout, LayoutSettings settings) {
  settings.mode = layout.split() ? LayoutSettings::Mode::split : LayoutSettings::Mode::shared;
  settings.replicas = layout.replicas();
  settings.depth = layout.depth();
  settings.shards = layout.shards();
  settings.team = 0;
  return settings;
}

/// The plan of the compressors of a split layout, to whom the text is given; none where they have
/// not the memory for it.
std::optional<Plan> without_generators(const JobToPlan& job, const Layout& layout,
                                       const Machine& machine, bool followed) {
  RunConfig config = job.config;
  const Layout compressors = layout.of_compressors();
  config.layout = grid_of(compressors, config.layout);
  config.calibration.source = CalibrationSource::tokens;
  try {
    Plan plan = make_plan(config, job.sizes, compressors.ranks(), machine, job.sharing, followed);
    if (plan.memory_limit > 0 && plan.largest_rank().memory > plan.memory_limit)
      return std::nullopt;
    return plan;
  } catch (const Error&) {
    return std::nullopt;
  }
}

int64_t sequential_jobs(const std::vector<JobToPlan>& jobs) {
  return std::ranges::count_if(
      jobs, [](const JobToPlan& job) { return job.config.propagation == Propagation::sequential; });
}

PlannedJob planned(const JobToPlan& job, const LayoutSettings& layout, int ranks,
                   const Machine& machine, bool followed, const std::vector<JobToPlan>& jobs) try {
  const bool named = jobs.size() > 1;
  RunConfig config = job.config;
  config.layout = layout;
  const bool beside = std::ranges::any_of(jobs, [&](const JobToPlan& other) {
    return differ_in_propagation_only(job.config, other.config);
  });
  config.evaluate.calibration_loss =
      measures_loss(job.config, beside) ? AutoFlag::yes : AutoFlag::no;
  PlannedJob result{job.config, job.sizes,
                    make_plan(config, job.sizes, ranks, machine, job.sharing, followed)};
  if (named && result.plan.layout.split())
    result.while_writing = without_generators({config, job.sizes, job.machine, job.sharing},
                                              result.plan.layout, machine, followed);
  return result;
} catch (const Error& error) {
  if (jobs.size() == 1) throw;
  fail(error.code(), "job {}: {}", job.config.name, error.what());
}

/// All jobs on the grid that `layout` comes to for the first one.
std::vector<PlannedJob> plan_on(const std::vector<JobToPlan>& jobs, const LayoutSettings& layout,
                                int ranks, bool typical) {
  std::vector<PlannedJob> all;
  for (const auto& job : jobs) {
    Machine machine = typical && job.machine.device.empty() ? typical_machine() : job.machine;
    const LayoutSettings grid =
        all.empty() ? layout : grid_of(all.front().plan.layout, job.config.layout);
    all.push_back(planned(job, grid, ranks, machine, sequential_jobs(jobs) > 1, jobs));
  }
  return all;
}

double all_seconds(const std::vector<PlannedJob>& jobs) {
  const auto seconds = seconds_beside_others(jobs);
  return std::accumulate(seconds.begin(), seconds.end(), 0.0);
}

uint64_t most_memory(const std::vector<PlannedJob>& jobs) {
  uint64_t most = 0;
  for (const auto& job : jobs) most = std::max(most, job.most_memory());
  return most;
}

bool fits(const std::vector<PlannedJob>& jobs) {
  return std::ranges::all_of(jobs, [](const PlannedJob& job) {
    return job.plan.memory_limit == 0 || job.plan.largest_rank().memory <= job.plan.memory_limit;
  });
}

/// Grids that differ, the simplest first. When none does, the first one's error is thrown.
std::vector<LayoutSettings> grids(const std::vector<JobToPlan>& jobs, int ranks) {
  const JobToPlan& first = jobs.front();
  const int64_t sequential = sequential_jobs(jobs);
  const bool busy_together = sequential > 1 || sequential < std::ssize(jobs);
  std::vector<LayoutSettings> found;
  std::vector<std::string> descriptions;
  std::exception_ptr first_error;
  for (const auto& option :
       layout_options(first.config.layout, busy_together, ranks, first.sizes.shape.layers))
    try {
      const auto plans = plan_on(jobs, option, ranks, true);
      const std::string description = plans.front().plan.layout.describe();
      if (std::ranges::find(descriptions, description) != descriptions.end()) continue;
      descriptions.push_back(description);
      found.push_back(option);
    } catch (const Error&) {
      if (!first_error) first_error = std::current_exception();
    }
  if (found.empty()) std::rethrow_exception(first_error);
  return found;
}

}  // namespace

std::vector<PlannedJob> plan_run(const std::vector<JobToPlan>& jobs, int ranks) {
  if (jobs.size() == 1)
    return {planned(jobs.front(), jobs.front().config.layout, ranks, jobs.front().machine, false,
                    jobs)};
  constexpr double clearly = 0.98;  // a simpler grid is taken where another is hardly faster
  const auto options = grids(jobs, ranks);
  size_t taken = 0;
  double best = all_seconds(plan_on(jobs, options.front(), ranks, true));
  for (size_t option = 1; option < options.size(); ++option) {
    const double seconds = all_seconds(plan_on(jobs, options[option], ranks, true));
    if (seconds >= clearly * best) continue;
    taken = option;
    best = seconds;
  }
  auto chosen = plan_on(jobs, options[taken], ranks, false);
  for (size_t option = 0; option < options.size(); ++option) {
    if (option == taken) continue;
    const auto other = plan_on(jobs, options[option], ranks, false);
    chosen.front().plan.rejected.push_back(
        {fmt::format("{}, all {} jobs", other.front().plan.layout.describe(), jobs.size()),
         all_seconds(other), most_memory(other), fits(other)});
  }
  return chosen;
}

}  // namespace selfcal
