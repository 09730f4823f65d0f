// The dense forward that feeds later shards at once, and where its results wait.
#pragma once
#include <functional>
#include <memory>
#include <set>
#include <vector>

#include "pipeline/boundary.hpp"
#include "pipeline/session.hpp"
#include "stages/generate/generator.hpp"

namespace selfcal {

/// With dense propagation and several shards, each rank that samples sends what the later shards
/// start from; else nothing is done. The receives are posted when this is made.
class DenseBoundaries {
 public:
  /// Borrows both.
  DenseBoundaries(const Session& session, const std::vector<Leaf>& leaves);

  /// The leaves of a micro-batch that this rank has just sampled, through the generator's own
  /// weights.
  void send_sampled(const MicroBatch& batch, const Generator& generator);
  /// Collective: what was not sent when it was sampled. All of a given set, of what an earlier run
  /// has sampled, and of a copy of the model that is spread over ranks, who deal the leaves.
  void send_rest(const at::Tensor& tokens);
  std::unique_ptr<LeafInbox> take_inbox() { return std::move(inbox_); }
  /// Waits until all is taken, or a stop is wished for.
  void finish() { outbox_.finish(); }
  /// Whether nothing is on its way.
  bool all_sent() { return outbox_.in_flight() == 0; }

 private:
  void send(const std::vector<Leaf>& leaves, std::vector<at::Tensor> hidden,
            const std::function<BlockWeights(int64_t)>& weights);

  const Session& session_;
  const std::vector<Leaf>& leaves_;
  bool needed_ = false;
  std::set<int64_t> sent_;
  BoundaryOutbox outbox_;
  std::unique_ptr<LeafInbox> inbox_;
};

}  // namespace selfcal
