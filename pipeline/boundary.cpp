#include "pipeline/boundary.hpp"

#include <ATen/ATen.h>

#include "pipeline/tensor_message.hpp"

namespace selfcal {
namespace {

constexpr int first_boundary_tag = 1000;

int boundary_tag(int64_t leaf, int64_t leaves, int shard) {
  return first_boundary_tag + static_cast<int>(shard * leaves + leaf);
}

}  // namespace

void BoundaryOutbox::send(const at::Tensor& given, int64_t leaf, int64_t leaves, int shard,
                          int to) {
  wait_for_room();
  if (stop_.requested()) return;
  const int tag = boundary_tag(leaf, leaves, shard);
  const at::Tensor hidden = given.to(at::kCPU);
  parcels_.push_back({hidden, world_.send_until_taken(bytes_of(hidden), to, tag),
                      Wait{"boundary taken", to, tag}});
}

size_t BoundaryOutbox::in_flight() {
  std::erase_if(parcels_, [](Parcel& parcel) { return parcel.request.done(); });
  return parcels_.size();
}

void BoundaryOutbox::wait_until_held(size_t most) {
  if (in_flight() <= most) return;
  world_.wait_until(parcels_.front().wait,
                    [&] { return in_flight() <= most || stop_.requested(); });
}

void LeafInbox::wait_for(Request& request, const Wait& wait) const {
  bool came = false;
  world_.wait_until(wait, [&] {
    if (meanwhile_) meanwhile_();
    return (came = request.done()) || stop_.requested();
  });
  if (!came) throw Stopped();
}

BoundaryInbox::BoundaryInbox(const Communicator& world, const SharedStop& stop,
                             const std::vector<Leaf>& owned, int64_t leaves, int shard,
                             const std::function<int(const Leaf&)>& source, int64_t length,
                             int64_t hidden, at::ScalarType dtype, std::function<void()> meanwhile)
    : LeafInbox(world, stop, std::move(meanwhile)) {
  for (const auto& leaf : owned) {
    const at::Tensor room = at::empty({leaf.rows, length, hidden}, dtype);
    const int from = source(leaf), tag = boundary_tag(leaf.index, leaves, shard);
    parcels_.push_back(
        {room, world.receive(bytes_of(room), from, tag), Wait{"boundary", from, tag}});
  }
}

BoundaryInbox::~BoundaryInbox() {
  for (auto& parcel : parcels_) parcel.request.give_up();
}

at::Tensor BoundaryInbox::take(size_t leaf) {
  auto& [hidden, request, wait] = parcels_.at(leaf);
  wait_for(request, wait);
  return std::move(hidden);
}

void send_dense_boundaries(const Model& model,
                           const std::function<BlockWeights(int64_t)>& block_weights,
                           const Layout& layout, const std::vector<Leaf>& leaves,
                           std::vector<at::Tensor> hidden, const SendBoundary& send) {
  int64_t layer = 0;
  for (int shard = 1; shard < layout.shards(); ++shard)
    for (; layer < layout.first_layer(shard); ++layer) {
      const BlockWeights weights = place(block_weights(layer), model.device());
      for (size_t i = 0; i < leaves.size(); ++i) {
        hidden[i] = forward(model.block(layer), hidden[i], weights);
        if (layer + 1 == layout.first_layer(shard))
          send(hidden[i], leaves[i], shard, layout.owner(leaves[i].index, shard));
      }
    }
}

}  // namespace selfcal
