#include "pipeline/progress.hpp"

#include <fmt/chrono.h>
#include <fmt/format.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdlib>
#include <iostream>
#include <nlohmann/json.hpp>

namespace selfcal {
namespace {

constexpr double live_interval = 0.2;
constexpr double plain_interval = 10.0;

double steady_seconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

bool error_stream_is_terminal() {
  const char* kind = std::getenv("TERM");
  return isatty(STDERR_FILENO) != 0 && kind != nullptr && std::string_view(kind) != "dumb";
}

size_t terminal_columns() {
  winsize size{};
  return ioctl(STDERR_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 0 ? size.ws_col : 80;
}

std::string speed_text(double units_per_second, const std::string& unit) {
  if (units_per_second >= 100)
    return fmt::format("{} {}/s", count_text(std::llround(units_per_second)), unit);
  if (units_per_second >= 0.995) return fmt::format("{:.1f} {}/s", units_per_second, unit);
  return fmt::format("{:.1f} {}/min", units_per_second * 60, unit);
}

}  // namespace

std::string duration_text(double seconds) {
  if (seconds < 0.9995) return fmt::format("{:.0f} ms", seconds * 1000);
  if (seconds < 59.95) return fmt::format("{:.1f} s", seconds);
  const int64_t whole = std::llround(seconds);
  if (whole < 3600) return fmt::format("{} min {} s", whole / 60, whole % 60);
  return fmt::format("{} h {} min", whole / 3600, whole % 3600 / 60);
}

std::string count_text(int64_t count) {
  std::string digits = std::to_string(count);
  if (digits.size() < 5) return digits;
  for (auto at = static_cast<int64_t>(digits.size()) - 3; at > (count < 0 ? 1 : 0); at -= 3)
    digits.insert(static_cast<size_t>(at), " ");
  return digits;
}

Progress::Progress(bool speaks)
    : Progress(Settings{speaks, nullptr, error_stream_is_terminal(), terminal_columns(), {}}) {}

Progress::Progress(Settings settings) : settings_(std::move(settings)) {
  if (settings_.out == nullptr) settings_.out = &std::cerr;
  if (!settings_.seconds) settings_.seconds = steady_seconds;
}

Progress::~Progress() { erase(); }

void Progress::start(const std::string& what, int64_t total, const std::string& unit) {
  finish();
  what_ = what;
  unit_ = unit;
  total_ = total;
  done_ = 0;
  earlier_ = -1;
  started_ = settings_.seconds();
  shown_ = settings_.terminal ? started_ - live_interval : started_;
  open_ = true;
  events_.write("start", {{"what", what}, {"total", total}, {"unit", unit}});
}

void Progress::update(int64_t done, std::string_view detail) {
  if (!open_) return;
  done_ = done;
  if (earlier_ < 0) earlier_ = done;
  const double now = settings_.seconds();
  if (now - shown_ < (settings_.terminal ? live_interval : plain_interval)) return;
  shown_ = now;
  if (!settings_.speaks) return;
  const std::string text = line(detail, now);
  if (settings_.terminal) {
    *settings_.out << '\r' << text.substr(0, settings_.columns - 1) << "\033[K" << std::flush;
    live_ = true;
  } else {
    *settings_.out << text << std::endl;
  }
}

std::string Progress::line(std::string_view detail, double now) const {
  std::string text =
      fmt::format("{}: {} of {} {}", what_, count_text(done_), count_text(total_), unit_);
  if (total_ > 0)
    text += fmt::format(" ({:.0f} %)",
                        100.0 * static_cast<double>(done_) / static_cast<double>(total_));
  if (done_ > earlier_ && now > started_) {
    const double speed = static_cast<double>(done_ - earlier_) / (now - started_);
    text += ", " + speed_text(speed, unit_);
    if (done_ < total_)
      text += fmt::format(", {} left", duration_text(static_cast<double>(total_ - done_) / speed));
  }
  if (!detail.empty()) text += fmt::format(", {}", detail);
  return text;
}

void Progress::finish() {
  if (!open_) return;
  open_ = false;
  const double seconds = settings_.seconds() - started_;
  const int64_t fresh = done_ - std::max<int64_t>(earlier_, 0);
  events_.write(
      "finish",
      {{"what", what_}, {"done", done_}, {"total", total_}, {"unit", unit_}, {"seconds", seconds}});
  if (!settings_.speaks) return;
  erase();
  std::string text =
      fmt::format("{}: {} {} in {}", what_, count_text(fresh), unit_, duration_text(seconds));
  if (fresh > 0 && seconds > 0)
    text += fmt::format(" ({})", speed_text(static_cast<double>(fresh) / seconds, unit_));
  if (fresh < done_) text += fmt::format(", {} were there already", count_text(done_ - fresh));
  *settings_.out << text << std::endl;
}

void Progress::say(std::string_view text) {
  if (!settings_.speaks) return;
  erase();
  *settings_.out << text << std::endl;
  if (settings_.terminal) shown_ -= live_interval;  // the live line comes back with the next update
}

void Progress::erase() {
  if (live_) *settings_.out << "\r\033[K" << std::flush;
  live_ = false;
}

EventLog::EventLog(const fs::path& file, int rank) : file_(file, std::ios::app), rank_(rank) {}

void EventLog::write(std::string_view event, const Fields& fields) {
  if (!file_.is_open()) return;
  const auto now =
      std::chrono::time_point_cast<std::chrono::milliseconds>(std::chrono::system_clock::now());
  nlohmann::ordered_json line;
  line["time"] = fmt::format("{:%Y-%m-%dT%H:%M:%S}.{:03}Z",
                             fmt::gmtime(std::chrono::system_clock::to_time_t(now)),
                             now.time_since_epoch().count() % 1000);
  line["rank"] = rank_;
  line["event"] = event;
  for (const auto& [name, value] : fields)
    std::visit([&, &name = name](const auto& held) { line[name] = held; }, value);
  file_ << line.dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace) << std::endl;
  file_.clear();  // a full disk may have room again later
}

}  // namespace selfcal
