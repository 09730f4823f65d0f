#include "comm/activity.hpp"

namespace selfcal {

void Activity::advance() {
  std::lock_guard lock(mutex_);
  ++now_.progress;
}

void Activity::enter(std::string_view phase) {
  std::lock_guard lock(mutex_);
  ++now_.progress;
  now_.phase = phase;
  now_.since = Clock::now();
}

Activity::Now Activity::now() const {
  std::lock_guard lock(mutex_);
  return now_;
}

Activity::Waiting::Waiting(Activity& activity, const Wait& wait) : activity_(activity) {
  std::lock_guard lock(activity_.mutex_);
  outer_ = activity_.now_;
  ++activity_.now_.progress;
  activity_.now_.waiting = true;
  activity_.now_.wait = wait;
  activity_.now_.since = Clock::now();
}

Activity::Waiting::~Waiting() {
  std::lock_guard lock(activity_.mutex_);
  ++activity_.now_.progress;
  activity_.now_.waiting = outer_.waiting;
  activity_.now_.wait = outer_.wait;
  activity_.now_.since = outer_.waiting ? outer_.since : Clock::now();
}

}  // namespace selfcal
