#include "pipeline/layout_options.hpp"

#include <algorithm>

namespace selfcal {
namespace {

using Mode = LayoutSettings::Mode;

/// With dense propagation shards work at once. With sequential propagation they take turns: one job
/// gains nothing from a second shard, jobs behind each other do.
std::vector<int> shard_counts(const LayoutSettings& settings, bool busy_together, int ranks,
                              int64_t layers) {
  if (settings.shards > 0) return {settings.shards};
  std::vector<int> counts{1};
  const int most = busy_together ? static_cast<int>(std::min<int64_t>(ranks, layers)) : 1;
  for (int shards = 2; shards <= most; shards *= 2) counts.push_back(shards);
  if (settings.team > 0 && ranks / settings.team > counts.back())
    counts.push_back(ranks / settings.team);
  return counts;
}

}  // namespace

std::vector<LayoutSettings> layout_options(const LayoutSettings& settings, bool busy_together,
                                           int ranks, int64_t layers) {
  std::vector<LayoutSettings> options;
  for (const int shards : shard_counts(settings, busy_together, ranks, layers)) {
    LayoutSettings option = settings;
    option.shards = shards;
    if (settings.mode != Mode::automatic || settings.replicas > 0 || ranks == 1) {
      options.push_back(option);
      continue;
    }
    for (const Mode mode : {Mode::shared, Mode::split}) {
      option.mode = mode;
      options.push_back(option);
    }
  }
  return options;
}

}  // namespace selfcal
