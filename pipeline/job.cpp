#include "pipeline/job.hpp"

#include "storage/layer_scan.hpp"

namespace selfcal {

bool Job::complete() const {
  std::string chain;
  for (const auto& header : committed) {
    if (!header || !follows(*header, chain)) return false;
    if (sequential()) chain = header->chain;
  }
  return !committed.empty();
}

void TimeAccount::charge(std::span<Job* const> jobs) {
  const PhaseSeconds now = timer_.seconds();
  for (Job* job : jobs)
    for (size_t phase = 0; phase < now.size(); ++phase)
      job->seconds[phase] += (now[phase] - charged_[phase]) / static_cast<double>(jobs.size());
  charged_ = now;
}

}  // namespace selfcal
