#include "pipeline/layout.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <numeric>

#include "base/error.hpp"

namespace selfcal {
namespace {

/// First layers of `shards` runs of nearly equal cost, none empty; the last entry is the number of
/// layers.
std::vector<int64_t> cut_by_cost(const std::vector<double>& cost, int shards) {
  const auto layers = static_cast<int64_t>(cost.size());
  const double total = std::accumulate(cost.begin(), cost.end(), 0.0);
  std::vector<int64_t> first{0};
  double before = 0;
  int64_t layer = 0;
  for (int shard = 1; shard < shards; ++shard) {
    const double target = total * shard / shards;
    const int64_t latest = layers - (shards - shard);
    do {
      before += cost[static_cast<size_t>(layer++)];
    } while (layer < latest && before + cost[static_cast<size_t>(layer)] / 2 <= target);
    first.push_back(layer);
  }
  first.push_back(layers);
  return first;
}

}  // namespace

Layout::Layout(const LayoutSettings& settings, int ranks, const std::vector<double>& layer_cost)
    : ranks_(ranks) {
  if (settings.depth > 1)
    fail(
        ExitCode::config,
        "layout.generators.depth: found {}; generators of more than one rank are not supported yet",
        settings.depth);
  const int shards = std::max(1, settings.shards);
  if (shards > static_cast<int>(layer_cost.size()))
    fail(ExitCode::config, "layout.compressors.shards: found {}, but the model has {} layers",
         shards, layer_cost.size());

  split_ = settings.mode == LayoutSettings::Mode::split && ranks > 1;
  int compressors = ranks, replicas = ranks;
  if (split_) {
    replicas = settings.replicas > 0 ? settings.replicas : 0;
    compressors = settings.team > 0 ? shards * settings.team : 0;
    if (replicas == 0 && compressors == 0) replicas = ranks / 2;
    if (replicas == 0) replicas = ranks - compressors;
    if (compressors == 0) compressors = ranks - replicas;
    if (replicas < 1 || compressors < shards || replicas + compressors > ranks)
      fail(ExitCode::config,
           "layout: {} generators and {} compressors ({} shards) need at least {} ranks, found {}",
           std::max(1, replicas), std::max(shards, compressors), shards,
           std::max(1, replicas) + std::max(shards, compressors), ranks);
    if (replicas + compressors < ranks)
      fail(ExitCode::config,
           "layout: {} generators and {} compressors leave {} of {} ranks without work", replicas,
           compressors, ranks - replicas - compressors, ranks);
  } else {
    const int needed = settings.team > 0 ? shards * settings.team : shards;
    if (ranks < shards || (settings.team > 0 && needed != ranks))
      fail(ExitCode::config, "layout: {} shards x {} ranks need {} ranks, found {}", shards,
           std::max(1, settings.team), needed, ranks);
    if (settings.replicas > ranks)
      fail(ExitCode::config, "layout.generators.replicas: found {}, but there are {} ranks",
           settings.replicas, ranks);
    if (settings.replicas > 0) replicas = settings.replicas;
  }

  const int first_generator = split_ ? compressors : 0;
  for (int g = 0; g < replicas; ++g) generators_.push_back(first_generator + g);

  teams_.resize(static_cast<size_t>(shards));
  shard_of_rank_.resize(static_cast<size_t>(ranks));
  for (int rank = 0; rank < ranks; ++rank) {
    const int shard =
        rank < compressors ? rank * shards / compressors : (rank - compressors) % shards;
    teams_[static_cast<size_t>(shard)].push_back(rank);
    shard_of_rank_[static_cast<size_t>(rank)] = shard;
  }
  first_layer_ = cut_by_cost(layer_cost, shards);
}

std::string Layout::describe() const {
  const auto compressors = split_ ? generators_.front() : ranks_;
  const std::string grid =
      fmt::format("{} shard{} x {}", shards(), shards() == 1 ? "" : "s", compressors / shards());
  if (!split_)
    return fmt::format("{} of {} ranks generate, then all compress ({})", generators_.size(),
                       ranks_, grid);
  return fmt::format(
      "{} generators + {} compressors ({}); generators join the compressors when they are done",
      generators_.size(), compressors, grid);
}

}  // namespace selfcal
