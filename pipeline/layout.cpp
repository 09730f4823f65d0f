#include "pipeline/layout.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <numeric>

#include "base/error.hpp"

namespace selfcal {
namespace {

using Mode = LayoutSettings::Mode;

/// Ranks that sample first, and ranks that compress from the start. In shared mode these are the
/// same ranks.
struct Counts {
  bool split = false;
  int replicas = 0;
  int compressors = 0;
};

/// "2 shards of 1 rank", "1 generator".
std::string counted(int count, const char* what) {
  return fmt::format("{} {}{}", count, what, count == 1 ? "" : "s");
}
/// "2 replicas of depth 3".
std::string copies(int replicas, int depth) {
  return counted(replicas, "replica") + (depth > 1 ? fmt::format(" of depth {}", depth) : "");
}
std::string grid(int shards, int team) {
  return counted(shards, "shard") + (team > 0 ? " of " + counted(team, "rank") : "");
}

Counts shared_counts(const LayoutSettings& settings, int ranks, int shards) {
  const int needed = shards * std::max(1, settings.team);
  if (needed > ranks)
    fail(ExitCode::config, "layout.compressors: {} need {}, found {}", grid(shards, settings.team),
         counted(needed, "rank"), ranks);
  if (settings.team > 0 && needed < ranks)
    fail(ExitCode::config, "layout.compressors: {} leave {} of {} ranks without work",
         grid(shards, settings.team), ranks - needed, ranks);
  const int replicas = settings.replicas > 0 ? settings.replicas : ranks / settings.depth;
  const int sampling = std::max(1, replicas) * settings.depth;
  if (sampling > ranks)
    fail(ExitCode::config, "layout.generators: {} need {}, found {}",
         copies(std::max(1, replicas), settings.depth), counted(sampling, "rank"), ranks);
  return {false, replicas, ranks};
}

Counts split_counts(const LayoutSettings& settings, int ranks, int shards) {
  const int least = shards * std::max(1, settings.team);
  // Counts left to the plan: half of the ranks sample, or what the compressors leave.
  const int free = ranks - least;
  const int room = settings.team > 0 ? free : std::min(std::max(ranks / 2, settings.depth), free);
  const int replicas = settings.replicas > 0 ? settings.replicas : room / settings.depth;
  const auto generators = [&](int count) {
    return counted(count, "generator") +
           (settings.depth > 1 ? fmt::format(" of depth {}", settings.depth) : "");
  };
  const int sampling = std::max(1, replicas) * settings.depth;
  if (sampling + least > ranks || replicas < 1)
    fail(ExitCode::config, "layout: {} and {} need {}, found {}", generators(std::max(1, replicas)),
         grid(shards, settings.team), counted(sampling + least, "rank"), ranks);
  const int compressors = settings.team > 0 ? least : ranks - sampling;
  if (sampling + compressors < ranks)
    fail(ExitCode::config, "layout: {} and {} leave {} of {} ranks without work",
         generators(replicas), grid(shards, settings.team), ranks - sampling - compressors, ranks);
  return {true, replicas, compressors};
}

/// A split needs a rank for a generator that no shard asks for; without one, the ranks that
/// compress sample first. One job gains nothing from `split` over sampling on all ranks, so `auto`
/// takes it only for a given number of generators.
bool wants_split(const LayoutSettings& settings, int ranks, int shards) {
  if (ranks == 1 || settings.mode == Mode::shared) return false;
  if (settings.mode == Mode::automatic)
    return settings.replicas > 0 && settings.replicas * settings.depth < ranks;
  return settings.replicas > 0 || ranks != shards * std::max(1, settings.team);
}

}  // namespace

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

Layout::Layout(const LayoutSettings& given, int ranks, const std::vector<double>& layer_cost)
    : ranks_(ranks), depth_(std::max(1, given.depth)) {
  LayoutSettings settings = given;
  settings.depth = depth_;
  if (depth_ > static_cast<int>(layer_cost.size()))
    fail(ExitCode::config, "layout.generators.depth: found {}, but the model has {} layers", depth_,
         layer_cost.size());
  const int shards = std::max(1, settings.shards);
  if (shards > static_cast<int>(layer_cost.size()))
    fail(ExitCode::config, "layout.compressors.shards: found {}, but the model has {} layers",
         shards, layer_cost.size());
  const Counts counts = wants_split(settings, ranks, shards)
                            ? split_counts(settings, ranks, shards)
                            : shared_counts(settings, ranks, shards);
  split_ = counts.split;

  const int first_generator = split_ ? counts.compressors : 0;
  for (int g = 0; g < counts.replicas * depth_; ++g) generators_.push_back(first_generator + g);

  teams_.resize(static_cast<size_t>(shards));
  shard_of_rank_.resize(static_cast<size_t>(ranks));
  for (int rank = 0; rank < ranks; ++rank) {
    const int shard = rank < counts.compressors ? rank * shards / counts.compressors
                                                : (rank - counts.compressors) % shards;
    teams_[static_cast<size_t>(shard)].push_back(rank);
    shard_of_rank_[static_cast<size_t>(rank)] = shard;
  }
  first_layer_ = cut_by_cost(layer_cost, shards);
}

Layout Layout::of_compressors() const {
  Layout alone = *this;
  alone.split_ = false;
  alone.text_comes_ = true;
  alone.ranks_ = generators_.front();
  alone.depth_ = 1;
  alone.generators_.resize(static_cast<size_t>(alone.ranks_));
  std::iota(alone.generators_.begin(), alone.generators_.end(), 0);
  for (auto& team : alone.teams_)
    std::erase_if(team, [&](int rank) { return rank >= alone.ranks_; });
  alone.shard_of_rank_.resize(static_cast<size_t>(alone.ranks_));
  return alone;
}

Layout Layout::of_generators() const {
  Layout alone = *this;
  alone.split_ = false;
  alone.ranks_ = static_cast<int>(generators_.size());
  std::iota(alone.generators_.begin(), alone.generators_.end(), 0);
  alone.teams_ = {alone.generators_};
  alone.shard_of_rank_.assign(generators_.size(), 0);
  alone.first_layer_ = {0, first_layer_.back()};
  return alone;
}

bool Layout::samples(int rank) const {
  return !text_comes_ && std::ranges::find(generators_, rank) != generators_.end();
}

std::string Layout::describe() const {
  if (ranks_ == 1 && !text_comes_) return "1 rank generates, then compresses";
  const int compressors = split_ ? generators_.front() : ranks_;
  const int smallest = compressors / shards(), largest = (compressors + shards() - 1) / shards();
  const std::string teams = fmt::format("{} x {}{}", counted(shards(), "shard"), smallest,
                                        largest > smallest ? fmt::format(" or {}", largest) : "");
  if (text_comes_)
    return fmt::format("{} ({}), while others generate", counted(ranks_, "compressor"), teams);
  if (split_)
    return fmt::format(
        "{} + {} ({}); generators join the compressors when they are done",
        counted(replicas(), "generator") + (depth_ > 1 ? fmt::format(" of {} ranks", depth_) : ""),
        counted(compressors, "compressor"), teams);
  return fmt::format("{} of {} ranks generate{}, then all compress ({})", generators_.size(),
                     ranks_, depth_ > 1 ? fmt::format(" ({})", copies(replicas(), depth_)) : "",
                     teams);
}

}  // namespace selfcal
