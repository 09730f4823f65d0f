#include "pipeline/dense_boundaries.hpp"

#include <ATen/ATen.h>

namespace selfcal {

DenseBoundaries::DenseBoundaries(const Session& session, const std::vector<Leaf>& leaves)
    : session_(session), leaves_(leaves), outbox_(session.world, session.stop) {
  const int rank = session.world.rank(), shard = session.layout.shard_of(rank);
  needed_ = session.config.propagation == Propagation::dense && session.layout.shards() > 1;
  if (!needed_ || shard == 0) return;
  std::vector<Leaf> owned;
  for (const auto& leaf : leaves)
    if (session.layout.owner(leaf.index, shard) == rank) owned.push_back(leaf);
  inbox_ = std::make_unique<BoundaryInbox>(
      session.world, session.stop, owned, static_cast<int64_t>(leaves.size()), shard,
      [&](const Leaf& leaf) { return session.layout.generator_of(leaf.micro_batch); },
      session.config.calibration.length, session.model.shape().hidden,
      session.model.shape().compute_dtype);
}

void DenseBoundaries::send_sampled(const MicroBatch& batch, const Generator& generator) {
  if (!needed_) return;
  send(
      leaves_of({batch.index}), generator.outer_weights(),
      [&](int64_t layer) { return generator.block_weights(layer); }, batch.tokens,
      batch.index * session_.config.calibration.micro_batch);
  sent_.insert(batch.index);
}

void DenseBoundaries::send_rest(const at::Tensor& tokens) {
  if (!needed_) return;
  std::set<int64_t> rest;
  for (const auto& leaf : leaves_)
    if (session_.layout.generator_of(leaf.micro_batch) == session_.world.rank() &&
        !sent_.contains(leaf.micro_batch))
      rest.insert(leaf.micro_batch);
  if (rest.empty()) return;
  send(
      leaves_of(rest), session_.model.read_outer(),
      [&](int64_t layer) { return session_.model.read_block(layer); }, tokens, 0);
}

std::vector<Leaf> DenseBoundaries::leaves_of(const std::set<int64_t>& batches) const {
  std::vector<Leaf> chosen;
  for (const auto& leaf : leaves_)
    if (batches.contains(leaf.micro_batch)) chosen.push_back(leaf);
  return chosen;
}

void DenseBoundaries::send(const std::vector<Leaf>& leaves, const OuterWeights& outer,
                           const std::function<BlockWeights(int64_t)>& weights,
                           const at::Tensor& tokens, int64_t first_row) {
  const auto scope = session_.timer.measure(Phase::forward);
  const auto send_one = [&](const at::Tensor& hidden, const Leaf& leaf, int shard, int to) {
    {
      const auto waiting = session_.timer.measure(Phase::idle);
      outbox_.wait_for_room();
    }
    const auto sending = session_.timer.measure(Phase::send);
    outbox_.send(hidden, leaf.index, static_cast<int64_t>(leaves_.size()), shard, to);
  };
  send_dense_boundaries(session_.model, outer, weights, session_.layout, leaves, tokens, first_row,
                        send_one);
}

}  // namespace selfcal
