#include "pipeline/layout_options.hpp"

#include <algorithm>

namespace selfcal {
namespace {

using Mode = LayoutSettings::Mode;

void add_new(std::vector<int>& counts, int count) {
  if (std::ranges::find(counts, count) == counts.end()) counts.push_back(count);
}

/// With dense propagation shards work at once. With sequential propagation they take turns: one job
/// gains nothing from a second shard, jobs behind each other do. Powers of two, what lies half way
/// between them, and as many as there can be.
std::vector<int> shard_counts(const LayoutSettings& settings, bool busy_together, int ranks,
                              int64_t layers) {
  if (settings.shards > 0) return {settings.shards};
  std::vector<int> counts{1};
  const int most = busy_together ? static_cast<int>(std::min<int64_t>(ranks, layers)) : 1;
  for (int shards = 2; shards <= most; shards *= 2)
    for (const int count : {shards, shards * 3 / 2})
      if (count <= most) add_new(counts, count);
  add_new(counts, most);
  if (settings.team > 0) add_new(counts, std::max(1, ranks / settings.team));
  return counts;
}

/// Copies that sample apart from the compressors: one, and those of a quarter, a half and three
/// quarters of the ranks; 0: as many as a given team leaves.
std::vector<int> replica_counts(const LayoutSettings& settings, int ranks) {
  if (settings.team > 0) return {0};
  const int depth = std::max(1, settings.depth);
  std::vector<int> counts{1};
  for (const int quarters : {1, 2, 3})
    if (const int replicas = ranks * quarters / 4 / depth; replicas > 0) add_new(counts, replicas);
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
    option.mode = Mode::shared;
    options.push_back(option);
    option.mode = Mode::split;
    for (const int replicas : replica_counts(settings, ranks)) {
      option.replicas = replicas;
      options.push_back(option);
    }
  }
  return options;
}

}  // namespace selfcal
