// What every way of moving bytes between ranks must do: the same tests by local memory, MPI, NCCL
// over the double, and NCCL over GPUs where there are some.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>

#include "tests/comm/transport.hpp"

namespace selfcal {
namespace {

using testing_support::make_transport;
using testing_support::Transport;
using Kind = DeviceMessage::Kind;
using Bytes = Transport::Bytes;

/// Contents that tell who made them and where in them one is.
Bytes pattern(int64_t length, int seed) {
  Bytes bytes(static_cast<size_t>(length));
  for (size_t i = 0; i < bytes.size(); ++i)
    bytes[i] = static_cast<std::byte>(i * 7 + i / 251 + static_cast<size_t>(seed) * 31 + 1);
  return bytes;
}

template <class T>
Bytes bytes_of(const std::vector<T>& values) {
  Bytes bytes(values.size() * sizeof(T));
  if (!values.empty()) std::memcpy(bytes.data(), values.data(), bytes.size());
  return bytes;
}

constexpr int64_t lengths[] = {0, 1, 999, 1000, 1001, 12345};  // around the pieces of NCCL

class Conformance : public testing::TestWithParam<const char*> {
 protected:
  void SetUp() override {
    auto [made, reason] = make_transport(GetParam());
    if (made == nullptr) GTEST_SKIP() << reason;
    transport_ = std::move(made);
  }
  void TearDown() override {
    if (transport_ == nullptr) return;
    EXPECT_EQ(transport_->violations(), std::vector<std::string>{});
  }
  const Communicator& ranks() const { return transport_->ranks(); }
  int rank() const { return ranks().rank(); }
  int size() const { return ranks().size(); }

  template <class T>
  void expect_reduced(const std::vector<T>& mine, Element element, ReduceOp op,
                      const std::vector<T>& expected) {
    Bytes data = bytes_of(mine);
    transport_->all_reduce(data, element, op);
    EXPECT_EQ(data, bytes_of(expected));
  }

  std::unique_ptr<Transport> transport_;
};

TEST_P(Conformance, BroadcastsFromEveryRoot) {
  for (int root = 0; root < size(); ++root) {
    for (const int64_t length : lengths) {
      Bytes data = pattern(length, rank());
      transport_->broadcast(data, root);
      EXPECT_EQ(data, pattern(length, root));
    }
  }
}

/// Of host memory, by all of them.
TEST_P(Conformance, BroadcastsWhileOtherCollectivesGoOn) {
  const std::vector<int64_t> long_and_short{0, 1, 300'000, 17};
  std::vector<Bytes> data;
  std::vector<Request> requests;
  std::vector<int> roots;
  for (int root = 0; root < size(); ++root)
    for (const int64_t length : long_and_short) {
      data.push_back(pattern(length, rank()));
      roots.push_back(root);
    }
  for (size_t i = 0; i < data.size(); ++i) {
    requests.push_back(ranks().begin_broadcast(data[i], roots[i]));
    std::vector<int64_t> ones{1};
    ranks().all_reduce(std::span(ones), ReduceOp::sum);
    EXPECT_EQ(ones[0], size());
  }
  Bytes other = pattern(1234, rank());
  transport_->broadcast(other, 0);
  EXPECT_EQ(other, pattern(1234, 0));
  for (size_t i = data.size(); i-- > 0;) {
    requests[i].wait();
    EXPECT_TRUE(requests[i].done());
    EXPECT_EQ(data[i], pattern(long_and_short[i % long_and_short.size()], roots[i]));
  }
}

TEST_P(Conformance, ReducesIntegersExactly) {
  const int64_t n = size(), large = (int64_t{1} << 60) / n, sum = n * (n - 1) / 2;
  expect_reduced<int64_t>({large + rank(), -rank(), 5}, Element::int64, ReduceOp::sum,
                          {large * n + sum, -sum, 5 * n});
  expect_reduced<int64_t>({large + rank(), -rank()}, Element::int64, ReduceOp::max,
                          {large + n - 1, 0});
  expect_reduced<int64_t>({large + rank(), -rank()}, Element::int64, ReduceOp::min, {large, 1 - n});
  const int last = size() - 1;
  expect_reduced<int32_t>({rank(), -rank(), 7}, Element::int32, ReduceOp::sum,
                          {int32_t(sum), -int32_t(sum), 7 * size()});
  expect_reduced<int32_t>({rank(), -rank()}, Element::int32, ReduceOp::max, {last, 0});
  expect_reduced<int32_t>({rank(), -rank()}, Element::int32, ReduceOp::min, {0, -last});
  expect_reduced<int64_t>({}, Element::int64, ReduceOp::sum, {});
}

TEST_P(Conformance, ReducesMoreThanAPiece) {
  std::vector<int32_t> mine(1003), expected(1003);
  for (int32_t i = 0; i < 1003; ++i) {
    mine[static_cast<size_t>(i)] = i * (rank() + 1);
    expected[static_cast<size_t>(i)] = i * size() * (size() + 1) / 2;
  }
  expect_reduced(mine, Element::int32, ReduceOp::sum, expected);
}

TEST_P(Conformance, SendsRoundTheRing) {
  const int next = (rank() + 1) % size(), previous = (rank() + size() - 1) % size();
  for (const int64_t length : lengths) {
    std::vector<Transport::Message> messages{
        {Kind::send, next, pattern(length, rank())},
        {Kind::receive, previous, Bytes(static_cast<size_t>(length))}};
    transport_->exchange(messages);
    EXPECT_EQ(messages[1].data, pattern(length, previous));
  }
}

TEST_P(Conformance, ExchangesWithAllAtOnce) {
  const auto length = [](int from, int to) { return int64_t{700} * from + int64_t{300} * to; };
  std::vector<Transport::Message> messages;
  for (int peer = 0; peer < size(); ++peer) {
    messages.push_back({Kind::receive, peer, Bytes(static_cast<size_t>(length(peer, rank())))});
    messages.push_back({Kind::send, peer, pattern(length(rank(), peer), rank())});
  }
  transport_->exchange(messages);
  for (const auto& [kind, peer, data] : messages) {
    const bool came = kind == Kind::receive;
    EXPECT_EQ(data,
              came ? pattern(length(peer, rank()), peer) : pattern(length(rank(), peer), rank()));
  }
}

TEST_P(Conformance, KeepsTheOrderOfMessages) {
  const int next = (rank() + 1) % size(), previous = (rank() + size() - 1) % size();
  std::vector<Transport::Message> messages;
  for (int i = 0; i < 5; ++i) {
    messages.push_back({Kind::send, next, pattern(1500, 10 * rank() + i)});
    messages.push_back({Kind::receive, previous, Bytes(1500)});
  }
  for (int again = 0; again < 2; ++again) {
    transport_->exchange(messages);
    for (int i = 0; i < 5; ++i)
      EXPECT_EQ(messages[static_cast<size_t>(2 * i + 1)].data, pattern(1500, 10 * previous + i));
  }
}

TEST_P(Conformance, OnlySomeRanksExchange) {
  if (size() < 2) GTEST_SKIP() << "needs two ranks";
  std::vector<Transport::Message> messages;
  if (rank() == 0) messages.push_back({Kind::send, size() - 1, pattern(2222, 3)});
  if (rank() == size() - 1) messages.push_back({Kind::receive, 0, Bytes(2222)});
  transport_->exchange(messages);
  for (const auto& message : messages) EXPECT_EQ(message.data, pattern(2222, 3));
  Bytes after = pattern(50, rank());
  transport_->broadcast(after, size() - 1);
  EXPECT_EQ(after, pattern(50, size() - 1));
}

TEST_P(Conformance, SplitsByColorInRankOrder) {
  const int color = rank() % 2;
  const auto part = transport_->split(color);
  EXPECT_EQ(part->ranks().size(), (size() + 1 - color) / 2);
  EXPECT_EQ(part->ranks().rank(), rank() / 2);
  EXPECT_EQ(part->ranks().world_rank(), ranks().world_rank());
  Bytes data = pattern(1700, rank());
  part->broadcast(data, part->ranks().size() - 1);
  EXPECT_EQ(data, pattern(1700, 2 * (part->ranks().size() - 1) + color));
  Bytes all = pattern(10, rank());
  transport_->broadcast(all, size() - 1);  // the whole still works beside its parts
  EXPECT_EQ(all, pattern(10, size() - 1));
}

INSTANTIATE_TEST_SUITE_P(Backends, Conformance,
                         testing::Values("local", "mpi", "nccl_double", "nccl"),
                         [](const auto& chosen) { return chosen.param; });

}  // namespace
}  // namespace selfcal
