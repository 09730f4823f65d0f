// Where the files of a run lie, and the rule that a directory holds one run of one config.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "base/file.hpp"

namespace selfcal {

/// Paths of one job of a run: jobs/<name>/.
class JobDirectory {
 public:
  explicit JobDirectory(fs::path path) : path_(std::move(path)) {}

  const fs::path& path() const { return path_; }
  fs::path layers() const { return path_ / "layers"; }
  fs::path layer(int64_t number) const;  // layers/0007.h5
  fs::path manifest() const { return path_ / "manifest.json"; }
  fs::path gathered() const { return path_ / "model.h5"; }
  fs::path report() const { return path_ / "report.json"; }
  fs::path exported(const std::string& format) const { return path_ / "export" / format; }

 private:
  fs::path path_;
};

class RunDirectory {
 public:
  /// Paths only; nothing is looked at or made.
  explicit RunDirectory(fs::path path) : path_(std::move(path)) {}

  /// Makes the directory for a run of this config, or finds the same run there. One rank calls it,
  /// holding the lock. A directory that holds a run of another config, or files that are no run, is
  /// ExitCode::config and names the first line that differs. Lines under a top-level key of
  /// `free_keys` may differ (how a run is computed, not what): then run.yaml is replaced.
  void prepare(const std::string& resolved_config,
               const std::vector<std::string>& free_keys = {}) const;
  /// For a reader: ExitCode::config when there is no run here.
  void expect_run() const;

  const fs::path& path() const { return path_; }
  fs::path config() const { return path_ / "run.yaml"; }
  fs::path lock() const { return path_ / "lock"; }
  fs::path calibration(const std::string& id) const { return path_ / "calibration" / (id + ".h5"); }
  fs::path logs() const { return path_ / "logs"; }
  fs::path queue() const { return path_ / "queue.json"; }
  /// A name that is not a plain folder name is ExitCode::config.
  JobDirectory job(const std::string& name) const;
  /// Names of the jobs that have a folder, sorted.
  std::vector<std::string> jobs() const;

 private:
  fs::path path_;
};

/// Makes the folder and those above it; ExitCode::io when that fails.
void make_folder(const fs::path& path);

/// Removes what killed writers left in a folder: ".<name>.<pid>.tmp". Only for the holder of the
/// lock, before its own writers start.
void remove_unfinished(const fs::path& folder);

}  // namespace selfcal
