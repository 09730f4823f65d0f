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

double sampling_seconds(const Plan& plan) {
  return plan.seconds[static_cast<size_t>(Phase::sample)];
}

/// When the last of many sequential jobs is through the last shard: a shard takes a job when it is
/// done with the one before, and the shard before has handed the job over. A job's work is divided
/// as the costs of its layers are.
class Wavefront {
 public:
  void add(const Plan& plan, double seconds) {
    const int shards = plan.layout.shards();
    shard_is_free_.resize(std::max(shard_is_free_.size(), static_cast<size_t>(shards)));
    double handed_over = 0;
    for (int shard = 0; shard < shards; ++shard) {
      double& free = shard_is_free_[static_cast<size_t>(shard)];
      free = std::max(free, handed_over) + seconds * plan.shard_parts[static_cast<size_t>(shard)];
      handed_over = free;
    }
  }
  double seconds() const { return shard_is_free_.empty() ? 0 : std::ranges::max(shard_is_free_); }

 private:
  std::vector<double> shard_is_free_;  // seconds since the first job's first layer
};

std::string job_table(const std::vector<PlannedJob>& jobs) {
  std::string text = "\njob                               memory  adds seconds\n";
  double all_seconds = 0;
  uint64_t memory = 0;
  const std::vector<double> seconds = seconds_beside_others(jobs);
  for (size_t i = 0; i < jobs.size(); ++i) {
    const uint64_t most = jobs[i].plan.largest_rank().memory;
    text += fmt::format("{:<30} {:>9}  {:>12.1f}\n", jobs[i].config.name, memory_text(most),
                        seconds[i]);
    all_seconds += seconds[i];
    memory = std::max(memory, most);
  }
  return text + fmt::format("{:<30} {:>9}  {:>12.1f}  ({})\n",
                            fmt::format("all {} jobs", jobs.size()), memory_text(memory),
                            all_seconds, duration_text(all_seconds));
}

}  // namespace

int jobs_sharing(const RunConfig& job, const std::vector<RunConfig>& jobs) {
  const auto shares = [](const RunConfig& config) {
    return config.propagation == Propagation::dense && config.method.name != MethodName::awq;
  };
  if (!shares(job)) return 1;
  const std::string key = forward_key(job);
  return static_cast<int>(std::ranges::count_if(
      jobs, [&](const RunConfig& other) { return shares(other) && forward_key(other) == key; }));
}

std::vector<double> seconds_beside_others(const std::vector<PlannedJob>& jobs) {
  std::vector<double> seconds;
  Wavefront wavefront;
  std::set<std::string> calibrations, forwards, weighed;
  for (const auto& job : jobs) {
    const std::string key = forward_key(job.config);
    const bool dense = job.config.propagation == Propagation::dense;
    const bool calibration_is_there = !calibrations.insert(key).second;
    const bool forward_is_there = dense && !forwards.insert(key).second;
    const bool weighs = job.config.method.sparsity.by_outliers;
    const bool outliers_are_there = weighs && !weighed.insert(key).second;
    const double alone =
        seconds_beside(job, calibration_is_there, forward_is_there, outliers_are_there);
    if (dense) {
      seconds.push_back(alone);
      continue;
    }
    // Calibration sets and outliers come before the first layer: no shard works on one meanwhile.
    double preparing = calibration_is_there ? 0 : sampling_seconds(job.plan);
    if (weighs && !outliers_are_there) preparing += sum(job.plan.outlier_seconds);
    const double before = wavefront.seconds();
    wavefront.add(job.plan, alone - preparing);
    seconds.push_back(preparing + wavefront.seconds() - before);
  }
  return seconds;
}

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
