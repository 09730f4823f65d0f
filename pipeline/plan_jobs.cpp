#include "pipeline/plan_jobs.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <initializer_list>
#include <set>

#include "pipeline/progress.hpp"
#include "pipeline/text_losses.hpp"

namespace selfcal {
namespace {

/// AWQ's search by the outputs of modules takes a pass of its own.
bool shares_statistics(const RunConfig& config) {
  return config.propagation == Propagation::dense &&
         !(config.method.name == MethodName::awq && config.method.scale_loss == ScaleLoss::module);
}

/// What a job with its calibration set adds to those before it: with dense propagation jobs of one
/// set share its forward and, where they can, statistics. Outliers and the dense model's loss,
/// which is half of an evaluation, are found once for all.
double seconds_beside(const Plan& plan, bool shares, bool forward_is_there, bool outliers_are_there,
                      bool dense_loss_is_there) {
  const PhaseSeconds& outliers = plan.outlier_seconds;
  double seconds = plan.total_seconds - (outliers_are_there ? sum(outliers) : 0);
  if (dense_loss_is_there) seconds -= plan.seconds[static_cast<size_t>(Phase::evaluate)] / 2;
  const auto take = [&](std::initializer_list<Phase> phases) {
    for (const Phase phase : phases)
      seconds -= plan.seconds[static_cast<size_t>(phase)] - outliers[static_cast<size_t>(phase)];
  };
  take({Phase::sample});
  if (forward_is_there) take({Phase::read});
  if (forward_is_there && shares) take({Phase::forward, Phase::statistics, Phase::reduce});
  return seconds;
}

/// What the dense model's losses are found of.
std::string text_of_evaluation(const RunConfig& config) {
  const EvaluateSettings& evaluate = config.evaluate;
  return evaluate.leaves > 0 && evaluate.calibration_loss != AutoFlag::yes ? evaluation_key(config)
                                                                           : forward_key(config);
}

double sampling_seconds(const Plan& plan) {
  return plan.seconds[static_cast<size_t>(Phase::sample)];
}

/// Seconds to write each text, once.
double writing_seconds(const std::vector<PlannedJob>& jobs) {
  double seconds = 0;
  std::set<std::string> texts;
  for (const auto& job : jobs)
    if (texts.insert(forward_key(job.config)).second) seconds += sampling_seconds(job.plan);
  return seconds;
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
    const uint64_t most = jobs[i].most_memory();
    text += fmt::format("{:<30} {:>9}  {:>12.1f}\n", jobs[i].config.name, memory_text(most),
                        seconds[i]);
    all_seconds += seconds[i];
    memory = std::max(memory, most);
  }
  text += fmt::format("{:<30} {:>9}  {:>12.1f}  ({})\n", fmt::format("all {} jobs", jobs.size()),
                      memory_text(memory), all_seconds, duration_text(all_seconds));
  if (write_ahead(jobs))
    text += fmt::format(
        "generators write for {:.1f} s, a text after the other, while compressors work on the jobs "
        "whose text is there\n",
        writing_seconds(jobs));
  return text;
}

}  // namespace

int jobs_sharing(const RunConfig& job, const std::vector<RunConfig>& jobs) {
  if (!shares_statistics(job)) return 1;
  const std::string key = forward_key(job);
  return static_cast<int>(std::ranges::count_if(jobs, [&](const RunConfig& other) {
    return shares_statistics(other) && forward_key(other) == key;
  }));
}

uint64_t PlannedJob::most_memory() const {
  return std::max(plan.largest_rank().memory,
                  while_writing ? while_writing->largest_rank().memory : 0);
}

bool write_ahead(const std::vector<PlannedJob>& jobs) {
  const std::string first = forward_key(jobs.front().config);
  return std::ranges::all_of(jobs, [](const auto& job) { return job.while_writing.has_value(); }) &&
         std::ranges::any_of(jobs, [&](const auto& job) {
           return job.config.calibration.source == CalibrationSource::self &&
                  forward_key(job.config) != first;
         });
}

std::vector<double> seconds_beside_others(const std::vector<PlannedJob>& jobs) {
  const bool ahead = write_ahead(jobs);
  const double all_written = writing_seconds(jobs);
  double now = 0, written = 0;
  std::vector<double> seconds;
  Wavefront wavefront;
  std::set<std::string> calibrations, forwards, weighed, scored;
  for (const auto& job : jobs) {
    const std::string key = forward_key(job.config);
    const bool dense = job.config.propagation == Propagation::dense;
    const bool calibration_is_there = !calibrations.insert(key).second;
    const bool forward_is_there = dense && !forwards.insert(key).second;
    const bool weighs = job.config.method.sparsity.by_outliers;
    const bool outliers_are_there = weighs && !weighed.insert(key).second;
    const bool scores = job.plan.seconds[static_cast<size_t>(Phase::evaluate)] > 0;
    const bool dense_loss_is_there =
        scores && !scored.insert(text_of_evaluation(job.config)).second;
    const double writing = calibration_is_there ? 0 : sampling_seconds(job.plan);
    written += writing;
    const double waiting = ahead ? std::max(0.0, written - now) : writing;
    const bool apart = ahead && now + waiting < all_written;
    const Plan& plan = apart ? *job.while_writing : job.plan;
    double alone = seconds_beside(plan, shares_statistics(job.config), forward_is_there,
                                  outliers_are_there, dense_loss_is_there);
    if (!dense && !apart) {
      // Calibration sets and outliers come before the first layer: no shard works on one meanwhile.
      const double outliers = weighs && !outliers_are_there ? sum(plan.outlier_seconds) : 0;
      const double before = wavefront.seconds();
      wavefront.add(plan, alone - outliers);
      alone = outliers + wavefront.seconds() - before;
    }
    seconds.push_back(waiting + alone);
    now += seconds.back();
  }
  return seconds;
}

std::string to_text(const std::vector<PlannedJob>& jobs) {
  const PlannedJob& first = jobs.front();
  return to_text(first.plan, first.config, first.sizes) + (jobs.size() > 1 ? job_table(jobs) : "");
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
