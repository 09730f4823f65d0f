// How far the run is: one live line on a terminal, plain lines in a batch log, JSON lines for
// machines.
#pragma once
#include <chrono>
#include <cstdint>
#include <fstream>
#include <string>

#include "base/file.hpp"

namespace selfcal {

class Progress {
 public:
  /// Only the rank that speaks prints; every rank writes JSON lines once log_to() was called.
  explicit Progress(bool speaks);
  ~Progress();

  /// Appends JSON lines {time, event, what, done, total} to a file.
  void log_to(const fs::path& file);

  /// Begins a piece of work of `total` units ("layers", "tokens").
  void start(const std::string& what, int64_t total, const std::string& unit);
  /// `done` units so far. Cheap: prints at most a few times a second on a terminal, every ten
  /// seconds in a log.
  void update(int64_t done);
  /// Ends the piece of work with a line that stays.
  void finish();

 private:
  void print(bool last);
  void record(const char* event);
  double elapsed() const;

  bool speaks_, terminal_;
  std::ofstream lines_;
  std::string what_, unit_;
  int64_t total_ = 0, done_ = 0, first_ = -1;
  bool active_ = false;
  std::chrono::steady_clock::time_point start_, next_print_;
};

}  // namespace selfcal
