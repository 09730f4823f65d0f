#include "pipeline/phase_timer.hpp"

#include <utility>

#include "pipeline/timeline.hpp"

namespace selfcal {

PhaseTimer::PhaseTimer(std::function<void(Phase)> on_enter)
    : timeline_(std::make_unique<Timeline>()), on_enter_(std::move(on_enter)) {}
PhaseTimer::~PhaseTimer() = default;

PhaseSeconds PhaseTimer::seconds() {
  enter(current_);
  return seconds_;
}

const Timeline& PhaseTimer::timeline() {
  enter(current_);
  return *timeline_;
}

Phase PhaseTimer::enter(Phase phase) {
  const auto seconds_at = [&](Clock::time_point time) {
    return std::chrono::duration<double>(time - start_).count();
  };
  const auto now = Clock::now();
  seconds_[static_cast<size_t>(current_)] += std::chrono::duration<double>(now - since_).count();
  timeline_->add(current_, seconds_at(since_), seconds_at(now));
  since_ = now;
  if (on_enter_ && phase != current_) on_enter_(phase);
  return std::exchange(current_, phase);
}

}  // namespace selfcal
