// A stop that one rank wishes for reaches the others while they work, while they wait, and what was
// on its way is taken off it.
#include "comm/shared_stop.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <optional>
#include <thread>
#include <vector>

#include "comm/agreement.hpp"

namespace selfcal {
namespace {

constexpr int untaken_tag = 3;

/// The time limit of one rank is over at once; the others have none.
StopSignal wished_on(const Communicator& world, int rank) {
  return StopSignal(world.rank() == rank ? std::optional(0.0) : std::nullopt);
}

TEST(SharedStop, IsNotThereByItself) {
  const auto world = Communicator::world();
  const SharedStop stop(world, StopSignal());
  for (int i = 0; i < 100; ++i) EXPECT_FALSE(stop.requested());
  EXPECT_NO_THROW(stop_together(world, stop));
}

TEST(SharedStop, OneRanksWishReachesAllThatWork) {
  const auto world = Communicator::world();
  for (int who = 0; who < world.size(); ++who) {
    const SharedStop stop(world, wished_on(world, who));
    wait_until([&] { return stop.requested(); });  // nobody is waited for: each asks for itself
    EXPECT_THROW(stop_together(world, stop), Stopped);
    world.barrier();
  }
}

TEST(SharedStop, IsPassedOnByRanksThatWait) {
  const auto world = Communicator::world();
  if (world.size() < 3) return;
  const int last = world.size() - 1;
  // The last rank works and asks now and then; the others wait for it in a collective, rank 1 with
  // the wish and rank 0, that tells all, among them.
  const SharedStop stop(world, wished_on(world, 1));
  if (world.rank() == last) wait_until([&] { return stop.requested(); });
  EXPECT_THROW(stop_together(world, stop), Stopped);
}

TEST(DropMessages, NothingStaysOnItsWay) {
  const auto world = Communicator::world();
  const int next = (world.rank() + 1) % world.size();
  const int before = (world.rank() + world.size() - 1) % world.size();
  for (const size_t bytes : {size_t{64}, size_t{1} << 22}) {
    // Two to each rank that nobody receives, and one that meets an open receive.
    std::vector<std::vector<std::byte>> sent(3, std::vector<std::byte>(bytes, std::byte{7}));
    std::vector<std::byte> into(bytes), never(bytes, std::byte{1});
    Request open = world.receive(into, before, untaken_tag + 1);
    Request unmatched = world.receive(never, before, untaken_tag + 2);
    std::vector<Request> requests;
    requests.push_back(world.send_until_taken(sent[0], next, untaken_tag));
    requests.push_back(world.send_until_taken(sent[1], next, untaken_tag));
    requests.push_back(world.send_until_taken(sent[2], next, untaken_tag + 1));
    if (world.size() > 1 && world.rank() == 0)  // some come later than others
      std::this_thread::sleep_for(std::chrono::milliseconds(50));
    world.drop_messages([&] {
      return world.size() == 1 ||
             std::ranges::all_of(requests, [](Request& request) { return request.done(); });
    });
    if (world.size() > 1) {
      open.wait();
      EXPECT_EQ(into.back(), std::byte{7});
    }
    open.give_up();
    unmatched.give_up();
    EXPECT_EQ(never.back(), std::byte{1});
    EXPECT_FALSE(world.probe(untaken_tag));
    world.barrier();
  }
}

}  // namespace
}  // namespace selfcal
