// What a job costs the model on the text that it was calibrated with.
#pragma once
#include <map>
#include <string>

#include "pipeline/job.hpp"

namespace selfcal {

/// That are scored, of 2048 tokens where sequences are not longer.
inline constexpr int64_t leaves_of_loss = 32;

/// The losses of a run's jobs. The dense model's is found once for all jobs of a text.
class CalibrationLosses {
 public:
  /// Of the first leaves of the job's calibration set, after every layer is committed: each token
  /// but a sequence's first is scored. Collective over the world, whose ranks have a leaf each in
  /// turn; the same bits on any number of them. Logits that are not finite are ExitCode::data.
  /// Throws Stopped on all ranks when one wants to stop.
  CalibrationLossReport measure(const Job& job);

 private:
  std::map<std::string, double> dense_;  // by forward_key()
};

}  // namespace selfcal
