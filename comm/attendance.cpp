#include "comm/attendance.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <numeric>

#include "comm/activity.hpp"

namespace selfcal {

Attendance::Attendance(std::vector<std::string> hosts, double timeout, double now)
    : timeout_(timeout) {
  for (auto& host : hosts) ranks_.push_back({std::move(host), {}, now});
}

void Attendance::heard(const Heartbeat& beat, double now) {
  Entry& entry = ranks_[static_cast<size_t>(beat.rank)];
  if (entry.last && entry.last->kind == Heartbeat::Kind::leaving) return;
  entry.last = beat;
  entry.at = now;
}

void Attendance::forgive(double seconds) {
  for (auto& entry : ranks_) entry.at += seconds;
}

bool Attendance::silent(int rank, double now) const {
  const Entry& entry = ranks_[static_cast<size_t>(rank)];
  return entry.last && entry.last->kind == Heartbeat::Kind::alive && now - entry.at > timeout_;
}

std::string Attendance::name(size_t rank) const {
  return fmt::format("rank {} on {}", rank, ranks_[rank].host);
}

std::optional<std::string> Attendance::verdict(double now) const {
  bool all_wait = true;
  for (size_t rank = 0; rank < ranks_.size(); ++rank) {
    if (silent(static_cast<int>(rank), now))
      return fmt::format(
          "{} has not been heard for {:.1f} s: it hangs, or its host or network is "
          "lost",
          name(rank), now - ranks_[rank].at);
  }
  for (size_t rank = 0; rank < ranks_.size(); ++rank) {
    const auto& last = ranks_[rank].last;
    // Whoever has left came out of a wait that others may still be about to leave.
    const bool has_left = last && last->kind == Heartbeat::Kind::leaving;
    const bool still = last && (has_left ? now - ranks_[rank].at : last->still) > timeout_;
    if (still && !has_left && !last->waiting)
      return fmt::format("{} has stood still in phase {} for {:.1f} s", name(rank), last->phase,
                         last->still);
    all_wait = all_wait && still;
  }
  if (all_wait)
    return fmt::format("all ranks have waited for each other for more than {:.1f} s", timeout_);
  return std::nullopt;
}

std::vector<int> Attendance::never_heard() const {
  std::vector<int> ranks;
  for (size_t rank = 0; rank < ranks_.size(); ++rank)
    if (!ranks_[rank].last) ranks.push_back(static_cast<int>(rank));
  return ranks;
}

std::vector<std::string> Attendance::describe(double now) const {
  constexpr size_t most = 64;
  std::vector<size_t> order(ranks_.size());
  std::iota(order.begin(), order.end(), size_t{0});
  const auto still = [&](size_t rank) {
    const Entry& entry = ranks_[rank];
    const double age = now - entry.at;
    return entry.last ? std::max<double>(age, entry.last->still) : age;
  };
  if (order.size() > most)
    std::ranges::stable_sort(order, [&](size_t a, size_t b) { return still(a) > still(b); });
  std::vector<std::string> lines;
  for (const size_t rank : order) {
    if (lines.size() == most) {
      lines.push_back(fmt::format("and {} ranks more", ranks_.size() - most));
      break;
    }
    const Entry& entry = ranks_[rank];
    lines.push_back(fmt::format(
        "{}: {}", name(rank),
        entry.last
            ? fmt::format("{}; heard {:.1f} s ago", selfcal::describe(*entry.last), now - entry.at)
            : "never heard"));
  }
  return lines;
}

std::string describe(const Heartbeat& beat) {
  if (beat.kind == Heartbeat::Kind::leaving) return "has left";
  if (!beat.waiting)
    return fmt::format("works in phase {}, still for {:.1f} s", beat.phase, beat.still);
  std::string peer = beat.peer == Wait::all      ? " with all its group"
                     : beat.peer == Wait::anyone ? " from any rank"
                                                 : fmt::format(" with rank {}", beat.peer);
  if (beat.tag != Wait::none) peer += fmt::format(", tag {}", beat.tag);
  return fmt::format("waits {:.1f} s for {}{} (phase {})", beat.seconds, beat.wait, peer,
                     beat.phase);
}

}  // namespace selfcal
