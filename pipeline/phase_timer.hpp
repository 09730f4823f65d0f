// Where a rank's time goes.
#pragma once
#include <array>
#include <chrono>
#include <functional>
#include <string_view>
#include <utility>

namespace selfcal {

enum class Phase {
  read,
  sample,
  forward,
  statistics,
  reduce,
  factorise,
  solve,
  gather,
  send,
  write,
  evaluate,
  idle
};
inline constexpr std::array<std::string_view, 12> phase_names = {
    "read",  "sample", "forward", "statistics", "reduce",   "factorise",
    "solve", "gather", "send",    "write",      "evaluate", "idle"};

/// Seconds by phase. Phases nest: the inner one takes the time, so the seconds add up to the whole.
/// One thread only.
class PhaseTimer {
 public:
  class Scope {
   public:
    Scope(PhaseTimer& timer, Phase phase) : timer_(timer), outer_(timer.enter(phase)) {}
    ~Scope() { timer_.enter(outer_); }
    Scope(const Scope&) = delete;
    Scope& operator=(const Scope&) = delete;

   private:
    PhaseTimer& timer_;
    Phase outer_;
  };

  PhaseTimer() = default;
  /// `on_enter` hears of every change.
  explicit PhaseTimer(std::function<void(Phase)> on_enter) : on_enter_(std::move(on_enter)) {}

  /// Time until the scope ends belongs to `phase`.
  [[nodiscard]] Scope measure(Phase phase) { return Scope(*this, phase); }
  /// Seconds so far; what no scope covered is idle.
  std::array<double, phase_names.size()> seconds() {
    enter(current_);
    return seconds_;
  }

 private:
  using Clock = std::chrono::steady_clock;

  Phase enter(Phase phase) {
    const auto now = Clock::now();
    seconds_[static_cast<size_t>(current_)] += std::chrono::duration<double>(now - since_).count();
    since_ = now;
    if (on_enter_ && phase != current_) on_enter_(phase);
    return std::exchange(current_, phase);
  }

  std::array<double, phase_names.size()> seconds_{};
  Phase current_ = Phase::idle;
  std::function<void(Phase)> on_enter_;
  Clock::time_point since_ = Clock::now();
};

}  // namespace selfcal
