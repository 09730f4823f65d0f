// queue.json: how far each job of a run is. For people and tools; a resumed run looks at the layer
// files and writes it anew.
#pragma once
#include <string>
#include <vector>

#include "base/file.hpp"

namespace selfcal {

enum class JobState { waiting, running, done, failed };

struct QueuedJob {
  std::string name;
  JobState state = JobState::waiting;
  std::string job_id;  // once its calibration is there
  int code = 0;        // exit code of a failed job
  std::string error;   // its one line

  bool operator==(const QueuedJob&) const = default;
};

/// Atomic. ExitCode::io.
void write_queue(const fs::path& path, const std::vector<QueuedJob>& jobs);
/// The inverse; anything that write_queue does not write is ExitCode::data.
std::vector<QueuedJob> read_queue(const fs::path& path);

/// "waiting", "running", "done", "failed".
std::string to_text(JobState state);

}  // namespace selfcal
