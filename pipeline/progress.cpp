#include "pipeline/progress.hpp"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>

namespace selfcal {
namespace {

std::string duration(double seconds) {
  const auto whole = static_cast<int64_t>(seconds + 0.5);
  if (whole < 60) return fmt::format("{} s", whole);
  if (whole < 3600) return fmt::format("{}:{:02} min", whole / 60, whole % 60);
  return fmt::format("{}:{:02} h", whole / 3600, whole / 60 % 60);
}

}  // namespace

Progress::Progress(bool speaks) : speaks_(speaks), terminal_(isatty(STDERR_FILENO) != 0) {}
Progress::~Progress() {
  if (active_ && speaks_ && terminal_)
    std::fputs("\n", stderr);  // an error ended the work: its line stays
}

void Progress::log_to(const fs::path& file) { lines_.open(file, std::ios::app); }

double Progress::elapsed() const {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count();
}

void Progress::start(const std::string& what, int64_t total, const std::string& unit) {
  what_ = what;
  unit_ = unit;
  total_ = total;
  done_ = 0;
  first_ = -1;
  active_ = true;
  start_ = std::chrono::steady_clock::now();
  next_print_ = start_ + std::chrono::seconds(terminal_ ? 0 : 10);
  record("start");
}

void Progress::update(int64_t done) {
  if (!active_) return;
  if (first_ < 0) first_ = done;  // what an earlier run had done does not count as speed
  done_ = done;
  const auto now = std::chrono::steady_clock::now();
  if (now < next_print_) return;
  next_print_ = now + std::chrono::milliseconds(terminal_ ? 200 : 10000);
  print(false);
  record("progress");
}

void Progress::finish() {
  if (!active_) return;
  print(true);
  record("finish");
  active_ = false;
}

void Progress::print(bool last) {
  if (!speaks_) return;
  const double seconds = elapsed(),
               fresh = static_cast<double>(done_ - std::max<int64_t>(first_, 0));
  const double speed = seconds > 0 ? fresh / seconds : 0;
  std::string line = fmt::format("{:<9} {:>7}/{} {}", what_, done_, total_, unit_);
  if (speed > 0)
    line += speed >= 10 ? fmt::format(", {:.0f} {}/s", speed, unit_)
                        : fmt::format(", {:.2f} {}/s", speed, unit_);
  if (last)
    line += fmt::format(", {}", duration(seconds));
  else if (speed > 0)
    line += fmt::format(", {} left", duration(static_cast<double>(total_ - done_) / speed));
  if (terminal_)
    fmt::print(stderr, "\r\033[K{}{}", line, last ? "\n" : "");
  else
    fmt::print(stderr, "{}\n", line);
  std::fflush(stderr);
}

void Progress::record(const char* event) {
  if (!lines_.is_open()) return;
  const auto now =
      std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count();
  lines_ << fmt::format(
                "{{\"time\": {:.3f}, \"event\": \"{}\", \"what\": \"{}\", \"done\": {}, \"total\": "
                "{}, \"unit\": \"{}\"}}\n",
                now, event, what_, done_, total_, unit_)
         << std::flush;
}

}  // namespace selfcal
