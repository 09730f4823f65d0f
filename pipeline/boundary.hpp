// Hidden states at the edges of shards, on their way from the rank that computed them to the rank
// that works on.
#pragma once
#include <ATen/core/Tensor.h>

#include <functional>
#include <limits>
#include <vector>

#include "comm/communicator.hpp"
#include "comm/shared_stop.hpp"
#include "pipeline/layout.hpp"
#include "pipeline/leaves.hpp"
#include "stages/model/model.hpp"

namespace selfcal {

/// Sends leaves while their sender works on, a few at a time: where the receivers have not taken
/// the last ones yet, the sender waits. Once a stop is wished for nothing more is sent, and no wait
/// goes on: to be followed by stop_together().
class BoundaryOutbox {
 public:
  static constexpr size_t usual_limit = 8, no_limit = std::numeric_limits<size_t>::max();
  /// `limit`: leaves on their way at most, at least 1.
  BoundaryOutbox(const Communicator& world, const SharedStop& stop, size_t limit = usual_limit)
      : world_(world), stop_(stop), limit_(limit) {}
  /// Sends the input of shard `shard`'s first layer for one leaf, in any memory, once there is room
  /// for it.
  void send(const at::Tensor& hidden, int64_t leaf, int64_t leaves, int shard, int to);
  /// Waits until send() need not, or a stop is wished for.
  void wait_for_room() { wait_until_held(limit_ - 1); }
  /// Waits until all are taken, or a stop is wished for.
  void finish() { wait_until_held(0); }
  /// Leaves sent and not taken yet, held in memory.
  size_t in_flight();

 private:
  struct Parcel {
    at::Tensor hidden;
    Request request;
    Wait wait;
  };
  void wait_until_held(size_t most);

  const Communicator& world_;
  const SharedStop& stop_;
  size_t limit_;
  std::vector<Parcel> parcels_;
};

/// The leaves that a rank owns in its shard, on their way to it.
class LeafInbox {
 public:
  /// `meanwhile` is called again and again in waits.
  LeafInbox(const Communicator& world, const SharedStop& stop, std::function<void()> meanwhile)
      : world_(world), stop_(stop), meanwhile_(std::move(meanwhile)) {}
  virtual ~LeafInbox() = default;
  LeafInbox(const LeafInbox&) = delete;
  LeafInbox& operator=(const LeafInbox&) = delete;
  /// Waits for the rank's leaf number `leaf`, which is given away: once. Throws Stopped when the
  /// wait ends because a stop is wished for.
  virtual at::Tensor take(size_t leaf) = 0;

 protected:
  const Communicator& world() const { return world_; }
  /// As take() does.
  void wait_for(Request& request, const Wait& wait) const;

 private:
  Communicator world_;
  const SharedStop& stop_;
  std::function<void()> meanwhile_;
};

/// By MPI: receives of all leaves, posted at once into the host's memory.
class BoundaryInbox : public LeafInbox {
 public:
  /// `source(leaf)`: the rank that will send it.
  BoundaryInbox(const Communicator& world, const SharedStop& stop, const std::vector<Leaf>& owned,
                int64_t leaves, int shard, const std::function<int(const Leaf&)>& source,
                int64_t length, int64_t hidden, at::ScalarType dtype,
                std::function<void()> meanwhile = {});
  /// Gives up what has not come: nobody sends it any more.
  ~BoundaryInbox() override;
  at::Tensor take(size_t leaf) override;

 private:
  struct Parcel {
    at::Tensor hidden;
    Request request;
    Wait wait;
  };
  std::vector<Parcel> parcels_;  // a leaf each
};

/// Gives the input of a shard's first layer for one leaf to a rank.
using SendBoundary =
    std::function<void(const at::Tensor& hidden, const Leaf& leaf, int shard, int to)>;

/// Dense forward of leaves, whose embeddings are `hidden`, to the last shard's first layer, sending
/// what each later shard starts from as soon as it is there, leaf by leaf. A layer's weights are
/// asked for once and dropped after its leaves. Independent.
void send_dense_boundaries(const Model& model,
                           const std::function<BlockWeights(int64_t)>& block_weights,
                           const Layout& layout, const std::vector<Leaf>& leaves,
                           std::vector<at::Tensor> hidden, const SendBoundary& send);

}  // namespace selfcal
