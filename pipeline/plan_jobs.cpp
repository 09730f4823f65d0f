#include "pipeline/plan_jobs.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <initializer_list>
#include <set>

#include "pipeline/progress.hpp"

namespace selfcal {
namespace {

/// What a job adds to those before it: jobs of one calibration sample it once, and with dense
/// propagation they share its forward and statistics, except for those of AWQ. Outliers are counted
/// once for all.
double seconds_beside(const PlannedJob& job, bool calibration_is_there, bool forward_is_there,
                      bool outliers_are_there) {
  const PhaseSeconds& outliers = job.plan.outlier_seconds;
  double seconds = job.plan.total_seconds - (outliers_are_there ? sum(outliers) : 0);
  const auto take = [&](std::initializer_list<Phase> phases) {
    for (const Phase phase : phases)
      seconds -=
          job.plan.seconds[static_cast<size_t>(phase)] - outliers[static_cast<size_t>(phase)];
  };
  if (calibration_is_there) take({Phase::sample});
  if (forward_is_there) take({Phase::read});
  if (forward_is_there && job.config.method.name != MethodName::awq)
    take({Phase::forward, Phase::statistics, Phase::reduce});
  return seconds;
}

std::string job_table(const std::vector<PlannedJob>& jobs) {
  std::string text = "\njob                               memory  adds seconds\n";
  double all_seconds = 0;
  uint64_t memory = 0;
  std::set<std::string> calibrations, forwards, weighed;
  for (const auto& job : jobs) {
    const std::string key = forward_key(job.config);
    const bool dense = job.config.propagation == Propagation::dense;
    const bool calibration_is_there = !calibrations.insert(key).second;
    const bool forward_is_there = dense && !forwards.insert(key).second;
    const bool outliers_are_there =
        job.config.method.sparsity.by_outliers && !weighed.insert(key).second;
    const double seconds =
        seconds_beside(job, calibration_is_there, forward_is_there, outliers_are_there);
    const uint64_t most = job.plan.largest_rank().memory;
    text += fmt::format("{:<30} {:>9}  {:>12.1f}\n", job.config.name, memory_text(most), seconds);
    all_seconds += seconds;
    memory = std::max(memory, most);
  }
  return text + fmt::format("{:<30} {:>9}  {:>12.1f}  ({})\n",
                            fmt::format("all {} jobs", jobs.size()), memory_text(memory),
                            all_seconds, duration_text(all_seconds));
}

}  // namespace

std::string to_text(const std::vector<PlannedJob>& jobs) {
  const auto& [config, sizes, plan] = jobs.front();
  return to_text(plan, config, sizes) + (jobs.size() > 1 ? job_table(jobs) : "");
}

std::string to_json(const std::vector<PlannedJob>& jobs) {
  if (jobs.size() == 1) return to_json(jobs.front().plan);
  std::string text;
  for (const auto& job : jobs)
    text +=
        fmt::format("{}\"{}\": {}", text.empty() ? "{" : ",\n", job.config.name, to_json(job.plan));
  return text + "}\n";
}

}  // namespace selfcal
