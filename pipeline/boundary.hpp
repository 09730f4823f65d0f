// Hidden states at the edges of shards, on their way from the rank that computed them to the rank
// that works on.
#pragma once
#include <ATen/core/Tensor.h>

#include <functional>
#include <vector>

#include "base/stop_signal.hpp"
#include "comm/communicator.hpp"
#include "pipeline/layout.hpp"
#include "pipeline/leaves.hpp"
#include "stages/model/model.hpp"

namespace selfcal {

/// Sends leaves without waiting; keeps them until they are taken.
class BoundaryOutbox {
 public:
  explicit BoundaryOutbox(const Communicator& world) : world_(world) {}
  /// Sends the input of shard `shard`'s first layer for one leaf.
  void send(const at::Tensor& hidden, int64_t leaf, int64_t leaves, int shard, int to);
  /// Waits until all are taken; throws Stopped when the wait ends by the signal.
  void finish(const StopSignal& stop);

 private:
  struct Parcel {
    at::Tensor hidden;
    Request request;
  };
  const Communicator& world_;
  std::vector<Parcel> parcels_;
};

/// Receives of all leaves that this rank owns in its shard, posted at once.
class BoundaryInbox {
 public:
  /// `source(leaf)`: the rank that will send it.
  BoundaryInbox(const Communicator& world, const std::vector<Leaf>& owned, int64_t leaves,
                int shard, const std::function<int(const Leaf&)>& source, int64_t length,
                int64_t hidden, at::ScalarType dtype);
  /// The leaves, in order, when all are there; throws Stopped when the wait ends by the signal.
  std::vector<at::Tensor> take(const StopSignal& stop);

 private:
  std::vector<at::Tensor> hidden_;
  std::vector<Request> requests_;
};

/// Dense forward of leaves from the embedding to the last shard's first layer, sending what each
/// later shard starts from. `tokens`: int32 [sequences, length] whose first row is row `first_row`
/// of the set. A layer's weights are asked for once and dropped after its leaves. Independent.
void send_dense_boundaries(const Model& model, const OuterWeights& outer,
                           const std::function<BlockWeights(int64_t)>& block_weights,
                           const Layout& layout, const std::vector<Leaf>& leaves,
                           int64_t all_leaves, const at::Tensor& tokens, int64_t first_row,
                           BoundaryOutbox& outbox);

}  // namespace selfcal
