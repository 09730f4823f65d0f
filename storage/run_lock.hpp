// One writer a run directory: a file made with O_EXCL, which every file system gets right (flock
// does not).
#pragma once
#include <cstdint>
#include <string>

#include "base/file.hpp"

namespace selfcal {

/// Who holds a lock.
struct LockOwner {
  std::string host;
  int64_t pid = 0;
  int64_t started = 0;  // of the process, in clock ticks since boot: tells a reused pid apart
  std::string job;      // of the batch scheduler; empty without one
  int64_t restart = 0;  // how often the scheduler has restarted the job

  /// This process; job and restart from SLURM_JOB_ID and SLURM_RESTART_COUNT.
  static LockOwner current();
};

/// Holds the lock until destroyed. One rank of a job takes it.
///
/// A lock that is already there is stale, and taken over, when its process is on this host and
/// gone, or when it is of this batch job before the scheduler restarted it. Else it is
/// ExitCode::io: the message names the holder and says which file to remove if that process is
/// known to be gone. A process on another host cannot be looked at, so its lock is never taken
/// over.
class RunLock {
 public:
  explicit RunLock(const fs::path& path, const LockOwner& owner = LockOwner::current());
  ~RunLock();
  RunLock(const RunLock&) = delete;
  RunLock& operator=(const RunLock&) = delete;

 private:
  fs::path path_;
  std::string text_;
};

}  // namespace selfcal
