// What a run is doing, for people (one live line on a terminal, plain lines elsewhere) and for
// machines (JSON lines).
#pragma once
#include <fstream>
#include <functional>
#include <iosfwd>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "base/file.hpp"

namespace selfcal {

/// One JSON object a line, appended to a file: {"time": ..., "rank": ..., "event": ..., fields}.
/// A line that cannot be written is dropped: logs never end a run.
class EventLog {
 public:
  using Value = std::variant<int64_t, double, std::string>;
  using Fields = std::vector<std::pair<std::string, Value>>;

  /// Keeps nothing.
  EventLog() = default;
  /// `file` is made where it is missing; its folder must be there.
  EventLog(const fs::path& file, int rank);

  void write(std::string_view event, const Fields& fields = {});

 private:
  std::ofstream file_;
  int rank_ = 0;
};

/// The line of one piece of work; only the rank that speaks (rank 0) prints. On a terminal the line
/// is rewritten in place at most 5 times a second; elsewhere a line is printed every 10 seconds.
class Progress {
 public:
  struct Settings {
    bool speaks = true;
    std::ostream* out = nullptr;  // default: standard error
    bool terminal = false;        // whether `out` is one
    size_t columns = 80;          // of the terminal
    std::function<double()> seconds =
        {};  // a clock that never goes back; default: the steady clock
  };

  /// Standard error, with what it is found to be.
  explicit Progress(bool speaks);
  explicit Progress(Settings settings);
  ~Progress();
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;

  /// From now on what happens is also kept as JSON lines; every rank has a file of its own.
  void log_to(const fs::path& file, int rank = 0) { events_ = EventLog(file, rank); }

  /// Begins a piece of work of `total` units ("layers", "tokens"); one that was open is finished.
  void start(const std::string& what, int64_t total, const std::string& unit);
  /// `done` units so far; what the first update after start() reports as done by an earlier run
  /// does not count as speed. `detail` is put at the end of the line.
  void update(int64_t done, std::string_view detail = {});
  /// Ends the piece of work with a line that stays: how much, how long, how fast.
  void finish();
  /// A line that stays, above the live one.
  void say(std::string_view text);
  /// A line for machines only: event("layer", {{"layer", 7}, {"seconds", 0.5}}).
  void event(std::string_view name, const EventLog::Fields& fields = {}) {
    events_.write(name, fields);
  }

 private:
  std::string line(std::string_view detail, double now) const;
  void erase();

  Settings settings_;
  EventLog events_;
  std::string what_, unit_;
  int64_t total_ = 0, done_ = 0;
  int64_t earlier_ = -1;  // done before this run; -1: not known yet
  double started_ = 0, shown_ = 0;
  bool open_ = false, live_ = false;
};

/// "850 ms", "12.3 s", "4 min 10 s", "2 h 5 min".
std::string duration_text(double seconds);
/// Digits in groups of three, from 10 000 on.
std::string count_text(int64_t count);

}  // namespace selfcal
