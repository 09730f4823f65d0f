#include "pipeline/dense_boundaries.hpp"

#include <ATen/ATen.h>

#include "pipeline/embedding.hpp"

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
      [&](const Leaf& leaf) { return session.layout.forwarder_of(leaf); },
      session.config.calibration.length, session.model.shape().hidden,
      session.model.shape().compute_dtype);
}

void DenseBoundaries::send_sampled(const MicroBatch& batch, const Generator& generator) {
  if (!needed_) return;
  std::vector<Leaf> leaves;
  std::vector<at::Tensor> hidden;
  const int64_t first = batch.index * session_.config.calibration.micro_batch;
  for (const auto& leaf : leaves_)
    if (leaf.micro_batch == batch.index) {
      leaves.push_back(leaf);
      hidden.push_back(session_.model.embed(batch.tokens.narrow(0, leaf.first - first, leaf.rows),
                                            generator.outer_weights()));
    }
  send(leaves, std::move(hidden), [&](int64_t layer) { return generator.block_weights(layer); });
  sent_.insert(batch.index);
}

void DenseBoundaries::send_rest(const at::Tensor& tokens) {
  if (!needed_) return;
  std::vector<Leaf> rest;
  for (const auto& leaf : leaves_)
    if (session_.layout.forwarder_of(leaf) == session_.world.rank() &&
        !sent_.contains(leaf.micro_batch))
      rest.push_back(leaf);
  auto hidden =
      embed_together(session_.world, session_.model, session_.timer, rows_of(tokens, rest));
  if (!rest.empty())
    send(rest, std::move(hidden), [&](int64_t layer) { return session_.model.read_block(layer); });
}

void DenseBoundaries::send(const std::vector<Leaf>& leaves, std::vector<at::Tensor> hidden,
                           const std::function<BlockWeights(int64_t)>& weights) {
  const auto scope = session_.timer.measure(Phase::forward);
  const auto send_one = [&](const at::Tensor& boundary, const Leaf& leaf, int shard, int to) {
    {
      const auto waiting = session_.timer.measure(Phase::idle);
      outbox_.wait_for_room();
    }
    const auto sending = session_.timer.measure(Phase::send);
    outbox_.send(boundary, leaf.index, static_cast<int64_t>(leaves_.size()), shard, to);
  };
  send_dense_boundaries(session_.model, weights, session_.layout, leaves, std::move(hidden),
                        send_one);
}

}  // namespace selfcal
