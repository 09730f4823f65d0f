// Flow control: a fast sender and a receiver that takes its time. Every rank sends to the last one,
// which takes nothing for a while.
#include "comm/outbox.hpp"

#include <gtest/gtest.h>

#include <chrono>
#include <thread>

namespace selfcal {
namespace {

using Clock = std::chrono::steady_clock;
constexpr int tag = 5, messages = 20;
constexpr auto pause = std::chrono::milliseconds(400);

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

/// Takes one message and returns its first byte.
int take(const Communicator& ranks, int from, size_t bytes) {
  std::vector<std::byte> message(bytes);
  ranks.receive(message, from, tag).wait();
  return std::to_integer<int>(message.front());
}

void send_and_check(const Communicator& ranks, size_t bytes, size_t limit) {
  const int receiver = ranks.size() - 1;
  Outbox outbox(ranks, limit);
  ranks.barrier();
  const auto start = Clock::now();
  for (int i = 0; i < messages; ++i) {
    outbox.send(std::vector<std::byte>(bytes, std::byte(i)), receiver, tag);
    EXPECT_LE(outbox.in_flight(), limit);
    // While nothing is taken, nothing more than the limit leaves, small messages too.
    if (static_cast<size_t>(i) >= limit) {
      EXPECT_GE(seconds_since(start), 0.3) << i;
    }
  }
  outbox.finish();
  EXPECT_EQ(outbox.in_flight(), 0u);
}

void take_slowly(const Communicator& ranks, size_t bytes) {
  ranks.barrier();
  std::this_thread::sleep_for(pause);
  for (int i = 0; i < messages; ++i)
    for (int from = 0; from < ranks.size() - 1; ++from) EXPECT_EQ(take(ranks, from, bytes), i);
}

TEST(Outbox, ASlowReceiverHoldsTheSenderBack) {
  const auto ranks = Communicator::world();
  if (ranks.size() == 1) return;
  for (const size_t bytes : {size_t{64}, size_t{1} << 20}) {
    for (const size_t limit : {size_t{1}, size_t{4}}) {
      if (ranks.rank() < ranks.size() - 1)
        send_and_check(ranks, bytes, limit);
      else
        take_slowly(ranks, bytes);
      ranks.barrier();
    }
  }
}

TEST(Outbox, WithoutALimitASenderNeverWaits) {
  const auto ranks = Communicator::world();
  const int to = (ranks.rank() + 1) % ranks.size();
  const int from = (ranks.rank() + ranks.size() - 1) % ranks.size();
  Outbox outbox(ranks);
  for (int i = 0; i < messages; ++i) outbox.send({std::byte(i)}, to, tag);
  for (int i = 0; i < messages; ++i) EXPECT_EQ(take(ranks, from, 1), i);
  outbox.finish();
}

}  // namespace
}  // namespace selfcal
