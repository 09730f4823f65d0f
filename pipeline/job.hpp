// A job on its way from its configuration to its report, and whose time passes meanwhile.
#pragma once
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "base/error.hpp"
#include "pipeline/calibration.hpp"
#include "pipeline/leaves.hpp"
#include "pipeline/report.hpp"
#include "pipeline/session.hpp"
#include "storage/layer_file.hpp"

namespace selfcal {

struct JobFailure {
  ExitCode code = ExitCode::internal;
  std::string text;  // one line
};

/// What a job is, on every rank, and what has come of it so far.
struct Job {
  Session session;  // its own configuration, model and layout; all else is the run's
  int64_t number = 0;
  Calibration calibration = {};
  std::vector<Leaf> leaves = {};
  std::string id = {};
  std::vector<std::optional<LayerHeader>> committed =
      {};  // by layer: an intact file of this job, when the run started
  std::vector<double> block_sparsity = {};  // by layer, where the sparsity is weighed by outliers
  std::vector<LayerReport> layers = {};     // of this rank's shard, on the team's first rank
  PhaseSeconds seconds = {};                // of this rank
  std::string shared = {};                  // what it has in common with other jobs, for the report
  bool finished = false;                    // by an earlier run: nothing is left to do
  const Job* beside = nullptr;              // of the same run: differs in propagation only
  std::optional<JobFailure> failure = {};

  const std::string& name() const { return session.config.name; }
  bool sequential() const { return session.config.propagation == Propagation::sequential; }
  /// Whether its loss on the calibration text is to be in the report.
  bool measures_loss() const;
  /// Every layer is committed, each on the one before it where that matters.
  bool complete() const;
};

/// Of the job and the content of its calibration set: equal where results are.
std::string job_id(const Session& session, const std::string& calibration_hash);

/// What is on disk of the layers of the job with this id, made ready to go on: what was being
/// written is removed. Rank 0 scans, all know: collective. A layer of another job is
/// ExitCode::config.
std::vector<std::optional<LayerHeader>> scan_committed(const Session& session,
                                                       const std::string& id);

/// Divides a rank's time among its jobs: all of it belongs to some job.
class TimeAccount {
 public:
  explicit TimeAccount(PhaseTimer& timer) : timer_(timer) {}
  /// What has passed since the last call, or the beginning, is these jobs' in equal parts.
  void charge(std::span<Job* const> jobs);
  void charge(Job& job) {
    Job* const one = &job;
    charge(std::span(&one, 1));
  }

 private:
  PhaseTimer& timer_;
  PhaseSeconds charged_{};
};

}  // namespace selfcal
