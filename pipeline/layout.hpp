// Who does what: a pure function of the configuration, the number of ranks and the number of
// layers.
#pragma once
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "pipeline/config.hpp"
#include "pipeline/leaves.hpp"

namespace selfcal {

/// Ranks [0, compressors) compress; with `split` the ranks after them sample first and then join a
/// shard's team (generator g joins shard g % shards). With `shared` every rank samples and then
/// compresses. A split that leaves no rank to sample is shared, and so is one rank.
class Layout {
 public:
  /// `layer_cost`: relative cost of each layer; shards are runs of layers of nearly equal cost.
  /// Counts that do not fit the ranks or the layers are ExitCode::config, with the numbers.
  Layout(const LayoutSettings& given, int ranks, const std::vector<double>& layer_cost);

  bool split() const { return split_; }
  int ranks() const { return ranks_; }
  /// World ranks that sample: replica r is generators [r * depth, (r + 1) * depth), each with a run
  /// of the model's layers in that order.
  const std::vector<int>& generators() const { return generators_; }
  int depth() const { return depth_; }
  int replicas() const { return static_cast<int>(generators_.size()) / depth_; }
  /// The replica that samples a micro-batch.
  int replica_of(int64_t micro_batch) const { return static_cast<int>(micro_batch % replicas()); }
  std::span<const int> ranks_of(int replica) const {
    return std::span(generators_)
        .subspan(static_cast<size_t>(replica) * static_cast<size_t>(depth_),
                 static_cast<size_t>(depth_));
  }
  /// The rank of a leaf's replica that sends what later shards start from, with dense propagation.
  int forwarder_of(const Leaf& leaf) const {
    return ranks_of(replica_of(leaf.micro_batch))[static_cast<size_t>(leaf.index % depth_)];
  }

  int shards() const { return static_cast<int>(teams_.size()); }
  /// World ranks of a shard's team once the generators have joined; the first one reads and writes
  /// for all.
  const std::vector<int>& team_of(int shard) const { return teams_[static_cast<size_t>(shard)]; }
  int shard_of(int rank) const { return shard_of_rank_[static_cast<size_t>(rank)]; }
  /// First layer of a shard; of shard `shards()`: the number of layers.
  int64_t first_layer(int shard) const { return first_layer_[static_cast<size_t>(shard)]; }
  /// The world rank that computes a leaf in a shard.
  int owner(int64_t leaf, int shard) const {
    const auto& team = team_of(shard);
    return team[static_cast<size_t>(leaf) % team.size()];
  }

  /// The compressors alone, for the time that the generators write ahead: the same shards and
  /// ranks. Of a split layout.
  Layout of_compressors() const;
  /// The generators alone meanwhile, numbered from 0, with their replicas, in one team. Of a split
  /// layout.
  Layout of_generators() const;
  /// Whether it is a rank's part to sample.
  bool samples(int rank) const;

  /// One line for people: "2 generators + 2 compressors (1 shard x 2), then 4 compress".
  std::string describe() const;

 private:
  bool split_ = false;
  bool text_comes_ = false;  // from generators that are not in this layout
  int ranks_ = 1;
  int depth_ = 1;
  std::vector<int> generators_;
  std::vector<std::vector<int>> teams_;
  std::vector<int> shard_of_rank_;
  std::vector<int64_t> first_layer_;
};

/// First layers of `shards` runs of nearly equal cost, none empty; the last entry is the number of
/// layers.
std::vector<int64_t> cut_by_cost(const std::vector<double>& cost, int shards);

}  // namespace selfcal
