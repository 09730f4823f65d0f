// What a rank did when.
#pragma once
#include <vector>

#include "pipeline/phase_timer.hpp"

namespace selfcal {

/// Seconds by phase in equal spans of time since the start. However long a run is, there are at
/// most `most_spans`: they grow with it.
struct Timeline {
  static constexpr size_t most_spans = 256;

  double span = 0.01;  // seconds
  std::vector<PhaseSeconds> spans;

  /// The time from `from` to `to` (seconds since the start) went into `phase`.
  void add(Phase phase, double from, double to);
};

}  // namespace selfcal
