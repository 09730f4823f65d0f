// A wish to stop: SIGTERM, SIGINT, SIGUSR1, SIGUSR2, or a time limit. Asked for at any moment,
// honoured at the next poll.
#pragma once
#include <chrono>
#include <optional>

#include "base/error.hpp"

namespace selfcal {

/// Thrown where a stop is honoured: what is committed stays, unfinished work is dropped.
class Stopped : public Error {
 public:
  Stopped() : Error(ExitCode::stopped, "stopped; run the same command again to go on") {}
};

class StopSignal {
 public:
  /// Installs the handlers. `max_hours`: the wish comes by itself after so long.
  explicit StopSignal(std::optional<double> max_hours = {});
  bool requested() const;

 private:
  std::optional<std::chrono::steady_clock::time_point> deadline_;
};

}  // namespace selfcal
