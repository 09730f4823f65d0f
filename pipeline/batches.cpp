#include "pipeline/batches.hpp"

#include <fmt/ranges.h>

#include <algorithm>
#include <map>

#include "pipeline/config.hpp"

namespace selfcal {

std::vector<Batch> plan_batches(std::deque<Job>& jobs, int shards) {
  std::vector<Batch> batches;
  std::map<std::string, size_t> by_key;
  for (auto& job : jobs) {
    const bool alone = job.sequential() && shards == 1;
    const std::string key = job.sequential() ? "sequential" : forward_key(job.session.config);
    const auto [found, fresh] = by_key.try_emplace(key, batches.size());
    if (alone || fresh) batches.emplace_back();
    auto& flows = batches[alone ? batches.size() - 1 : found->second].flows;
    if (flows.empty() || job.sequential()) flows.emplace_back();
    flows.back().push_back(&job);
  }
  return batches;
}

void drop_finished(std::vector<Batch>& batches) {
  const auto is_over = [](const Job* job) { return job->finished || job->failure; };
  for (auto& batch : batches)
    std::erase_if(batch.flows,
                  [&](const auto& jobs) { return std::ranges::all_of(jobs, is_over); });
  std::erase_if(batches, [](const Batch& batch) { return batch.flows.empty(); });
}

std::string describe_sharing(const std::vector<Job*>& jobs) {
  if (jobs.size() == 1) return {};
  std::vector<std::string> names;
  for (const Job* job : jobs) names.push_back(job->name());
  return fmt::format(
      "forward and statistics of a layer shared by {} jobs ({}), which have equal parts of that "
      "time; a factor counts with the first job that asks for it; searches, solves and writes are "
      "each job's own, and so are the forward and statistics of AWQ with scale_loss module",
      jobs.size(), fmt::join(names, ", "));
}

}  // namespace selfcal
