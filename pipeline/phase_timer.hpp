// Where a rank's time goes.
#pragma once
#include <array>
#include <chrono>
#include <functional>
#include <memory>
#include <string_view>

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

/// Seconds by phase, in the order of phase_names.
using PhaseSeconds = std::array<double, phase_names.size()>;

struct Timeline;

/// Seconds by phase. Phases nest: the inner one takes the time, so the seconds add up to the whole.
/// One thread only.
class PhaseTimer {
 public:
  /// Starts now. `on_enter` hears of every change.
  explicit PhaseTimer(std::function<void(Phase)> on_enter = {});
  ~PhaseTimer();

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

  /// Time until the scope ends belongs to `phase`.
  [[nodiscard]] Scope measure(Phase phase) { return Scope(*this, phase); }
  /// Seconds so far; what no scope covered is idle.
  PhaseSeconds seconds();
  /// The same in the order of time.
  const Timeline& timeline();

 private:
  using Clock = std::chrono::steady_clock;

  Phase enter(Phase phase);

  PhaseSeconds seconds_{};
  std::unique_ptr<Timeline> timeline_;
  Phase current_ = Phase::idle;
  std::function<void(Phase)> on_enter_;
  const Clock::time_point start_ = Clock::now();
  Clock::time_point since_ = start_;
};

}  // namespace selfcal
