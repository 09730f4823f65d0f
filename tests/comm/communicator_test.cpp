// The conformance suite of the communicator: the same tests over every backend that fits the number
// of ranks.
#include "comm/communicator.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>

namespace selfcal {
namespace {

template <class T>
std::span<std::byte> bytes(std::vector<T>& values) {
  return std::as_writable_bytes(std::span(values));
}

std::vector<Communicator> backends() {
  std::vector<Communicator> all{Communicator::world()};
  if (all.front().size() == 1) all.push_back(Communicator::local());
  return all;
}

TEST(Communicator, BroadcastsFromEveryRoot) {
  for (const auto& ranks : backends()) {
    for (int root = 0; root < ranks.size(); ++root) {
      std::vector<int> values(1000, ranks.rank() == root ? 7 + root : 0);
      ranks.broadcast(bytes(values), root);
      EXPECT_EQ(std::ranges::count(values, 7 + root), 1000);
    }
  }
}

TEST(Communicator, ReducesIntegersExactly) {
  for (const auto& ranks : backends()) {
    std::vector<int64_t> values{(int64_t{1} << 60) / ranks.size() + ranks.rank(), -ranks.rank(), 5};
    ranks.all_reduce(std::span(values), ReduceOp::sum);
    const int64_t n = ranks.size(), ranks_sum = n * (n - 1) / 2;
    EXPECT_EQ(values[0], (int64_t{1} << 60) / n * n + ranks_sum);
    EXPECT_EQ(values[1], -ranks_sum);
    EXPECT_EQ(values[2], 5 * n);

    std::vector<int32_t> extremes{ranks.rank(), -ranks.rank()};
    ranks.all_reduce(std::span(extremes), ReduceOp::max);
    EXPECT_EQ(extremes[0], ranks.size() - 1);
    EXPECT_EQ(extremes[1], 0);
  }
}

/// Lengths that do not divide by the ranks, on both sides of what goes round in a ring.
TEST(Communicator, ReducesLargeArraysExactly) {
  for (const auto& ranks : backends())
    for (const int64_t length : {8191, 65537, 1000003}) {
      std::vector<int64_t> values(static_cast<size_t>(length));
      std::iota(values.begin(), values.end(), ranks.rank());
      ranks.all_reduce(std::span(values), ReduceOp::sum);
      const int64_t n = ranks.size();
      for (int64_t i = 0; i < length; ++i)
        ASSERT_EQ(values[static_cast<size_t>(i)], n * i + n * (n - 1) / 2) << i;

      std::vector<int32_t> extremes(static_cast<size_t>(length));
      for (int32_t i = 0; i < length; ++i)
        extremes[static_cast<size_t>(i)] = i % n == ranks.rank() ? i : -1;
      auto smallest = extremes;
      ranks.all_reduce(std::span(extremes), ReduceOp::max);
      ranks.all_reduce(std::span(smallest), ReduceOp::min);
      for (int32_t i = 0; i < length; ++i) {
        ASSERT_EQ(extremes[static_cast<size_t>(i)], i);
        ASSERT_EQ(smallest[static_cast<size_t>(i)], n == 1 ? i : -1);
      }
    }
}

TEST(Communicator, GathersInPlace) {
  for (const auto& ranks : backends()) {
    const auto count = static_cast<size_t>(ranks.size());
    // One part is empty.
    std::vector<std::vector<int>> values(count);
    for (size_t rank = 0; rank < count; ++rank)
      values[rank].assign(rank * 100000, rank == static_cast<size_t>(ranks.rank()) ? 7 : 0);
    std::vector<std::span<std::byte>> parts;
    for (auto& part : values) parts.push_back(bytes(part));
    ranks.all_gather(parts);
    for (size_t rank = 0; rank < count; ++rank)
      EXPECT_EQ(std::ranges::count(values[rank], 7), static_cast<int64_t>(rank) * 100000);
  }
}

TEST(Communicator, GathersMessagesOfAnyLength) {
  for (const auto& ranks : backends()) {
    const std::vector<std::byte> mine(static_cast<size_t>(ranks.rank()) * 100,
                                      std::byte(ranks.rank()));
    const auto all = ranks.all_gather(mine);
    ASSERT_EQ(static_cast<int>(all.size()), ranks.size());
    for (size_t rank = 0; rank < all.size(); ++rank) {
      EXPECT_EQ(all[rank].size(), rank * 100);
      EXPECT_TRUE(
          std::ranges::all_of(all[rank], [&](std::byte b) { return b == std::byte(rank); }));
    }
  }
}

TEST(Communicator, SendsRoundTheRing) {
  for (const auto& ranks : backends()) {
    std::vector<int> out(100000, ranks.rank()), in(100000, -1);
    const int next = (ranks.rank() + 1) % ranks.size(),
              previous = (ranks.rank() + ranks.size() - 1) % ranks.size();
    Request sent = ranks.send(bytes(out), next, 3);
    Request received = ranks.receive(bytes(in), previous, 3);
    received.wait();
    sent.wait();
    EXPECT_EQ(std::ranges::count(in, previous), 100000);
  }
}

TEST(Communicator, ProbesBeforeItReceives) {
  for (const auto& ranks : backends()) {
    const int next = (ranks.rank() + 1) % ranks.size();
    std::vector<int> out(static_cast<size_t>(ranks.rank()) + 1, ranks.rank());
    Request sent = ranks.send(bytes(out), next, 9);
    std::optional<Envelope> envelope;
    wait_until([&] { return (envelope = ranks.probe(9)).has_value(); });
    EXPECT_FALSE(ranks.probe(10).has_value());
    std::vector<int> in(static_cast<size_t>(envelope->bytes) / sizeof(int));
    ranks.receive(bytes(in), envelope->source, 9).wait();
    sent.wait();
    EXPECT_EQ(in.front(), envelope->source);
    EXPECT_EQ(static_cast<int>(in.size()), envelope->source + 1);
  }
}

TEST(Communicator, SplitsByColorInRankOrder) {
  for (const auto& ranks : backends()) {
    const int color = ranks.rank() % 2;
    const auto part = ranks.split(color);
    EXPECT_EQ(part.size(), (ranks.size() + 1 - color) / 2);
    EXPECT_EQ(part.rank(), ranks.rank() / 2);
    EXPECT_EQ(part.world_rank(), ranks.world_rank());
    part.barrier();
  }
}

}  // namespace
}  // namespace selfcal
