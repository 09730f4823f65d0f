#include "pipeline/boundary.hpp"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <chrono>
#include <thread>

namespace selfcal {
namespace {

constexpr int64_t leaves = 12, length = 8, hidden = 16;
constexpr size_t limit = 3;

at::Tensor leaf_of(int64_t index) {
  return at::full({2, length, hidden}, static_cast<double>(index), at::kFloat);
}

std::vector<Leaf> all_leaves() {
  std::vector<Leaf> list;
  for (int64_t index = 0; index < leaves; ++index) {
    Leaf leaf;
    leaf.index = index;
    leaf.first = 2 * index;
    leaf.rows = 2;
    list.push_back(leaf);
  }
  return list;
}

/// On rank 1, of what rank 0 sends.
std::unique_ptr<LeafInbox> inbox_of_all(const Communicator& world, const SharedStop& stop) {
  return std::make_unique<BoundaryInbox>(
      world, stop, all_leaves(), leaves, 1, [](const Leaf&) { return 0; }, length, hidden,
      at::kFloat);
}

// Rank 0 sends to rank 1, which posts its receives late.
TEST(Boundary, ASlowReceiverHoldsTheSenderBack) {
  const auto world = Communicator::world();
  const SharedStop stop(world, StopSignal());
  ASSERT_EQ(world.size(), 2);
  world.barrier();
  if (world.rank() == 0) {
    BoundaryOutbox outbox(world, stop, limit);
    const auto start = std::chrono::steady_clock::now();
    for (int64_t index = 0; index < leaves; ++index) {
      outbox.send(leaf_of(index), index, leaves, 1, 1);
      EXPECT_LE(outbox.in_flight(), limit);
      const std::chrono::duration<double> passed = std::chrono::steady_clock::now() - start;
      if (static_cast<size_t>(index) >= limit) {
        EXPECT_GE(passed.count(), 0.3) << index;
      }
    }
    outbox.finish();
    EXPECT_EQ(outbox.in_flight(), 0u);
  } else {
    std::this_thread::sleep_for(std::chrono::milliseconds(400));
    const auto inbox = inbox_of_all(world, stop);
    for (int64_t index = 0; index < leaves; ++index)
      EXPECT_TRUE(at::equal(inbox->take(static_cast<size_t>(index)), leaf_of(index)));
  }
  world.barrier();
}

// Rank 0 keeps the last leaf until rank 1 says that it has taken all others.
TEST(Boundary, LeavesAreTakenWhileTheLastIsHeldBack) {
  constexpr int said = 1;
  const auto world = Communicator::world();
  const SharedStop stop(world, StopSignal());
  std::byte word{};
  if (world.rank() == 0) {
    BoundaryOutbox outbox(world, stop, BoundaryOutbox::no_limit);
    for (int64_t index = 0; index < leaves; ++index) {
      if (index + 1 == leaves) world.receive({&word, 1}, 1, said).wait();
      outbox.send(leaf_of(index), index, leaves, 1, 1);
    }
    outbox.finish();
  } else {
    const auto inbox = inbox_of_all(world, stop);
    for (int64_t index = 0; index + 1 < leaves; ++index)
      EXPECT_TRUE(at::equal(inbox->take(static_cast<size_t>(index)), leaf_of(index)));
    world.send({&word, 1}, 0, said).wait();
    EXPECT_TRUE(at::equal(inbox->take(leaves - 1), leaf_of(leaves - 1)));
  }
  world.barrier();
}

TEST(Boundary, AWishedStopEndsTheWaitForALeaf) {
  const auto world = Communicator::world();
  const SharedStop stop(world, StopSignal(0.0));
  if (world.rank() == 1) {
    EXPECT_THROW(inbox_of_all(world, stop)->take(0), Stopped);
  }
  world.barrier();
}

}  // namespace
}  // namespace selfcal
