#include "pipeline/job.hpp"

#include "base/hash.hpp"
#include "storage/layer_scan.hpp"

namespace selfcal {

bool Job::measures_loss() const {
  using CalibrationLoss = EvaluateSettings::CalibrationLoss;
  const CalibrationLoss asked = session.config.evaluate.calibration_loss;
  return asked == CalibrationLoss::automatic ? beside != nullptr : asked == CalibrationLoss::yes;
}

bool Job::complete() const {
  std::string chain;
  for (const auto& header : committed) {
    if (!header || !follows(*header, chain)) return false;
    if (sequential()) chain = header->chain;
  }
  return !committed.empty();
}

std::string job_id(const Session& session, const std::string& calibration_hash) {
  return Hasher()
      .text(session.model.checkpoint().identity())
      .text(calibration_hash)
      .text(identity(session.config))
      .text(session.numeric_kind)
      .digest();
}

void TimeAccount::charge(std::span<Job* const> jobs) {
  const PhaseSeconds now = timer_.seconds();
  for (Job* job : jobs)
    for (size_t phase = 0; phase < now.size(); ++phase)
      job->seconds[phase] += (now[phase] - charged_[phase]) / static_cast<double>(jobs.size());
  charged_ = now;
}

}  // namespace selfcal
