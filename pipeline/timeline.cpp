#include "pipeline/timeline.hpp"

#include <algorithm>

namespace selfcal {

void Timeline::add(Phase phase, double from, double to) {
  while (to > span * static_cast<double>(most_spans)) {
    for (size_t i = 0; i < spans.size(); ++i)
      for (size_t p = 0; p < phase_names.size(); ++p) {
        const double seconds = std::exchange(spans[i][p], 0.0);
        spans[i / 2][p] += seconds;
      }
    spans.resize((spans.size() + 1) / 2);
    span *= 2;
  }
  while (from < to) {
    const auto place = static_cast<size_t>(from / span);
    if (place >= spans.size()) spans.resize(place + 1);
    // The end of a span may round to its start: a step forward all the same.
    const double end = std::max(std::min(to, static_cast<double>(place + 1) * span), from + 1e-9);
    spans[place][static_cast<size_t>(phase)] += end - from;
    from = end;
  }
}

}  // namespace selfcal
