// What the NCCL backend asks of NCCL, and how it ends: over the double, which tells.
#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>

#include "base/error.hpp"
#include "comm/nccl/nccl_group.hpp"
#include "tests/comm/nccl_double.hpp"

namespace selfcal {
namespace {

using testing_support::NcclDouble;
using Kind = DeviceMessage::Kind;
using Calls = std::vector<std::string>;
using namespace std::chrono_literals;

class NcclBackendTest : public testing::Test {
 protected:
  Communicator connect() {
    options_.device = world_.rank();
    return Communicator::nccl(world_, vendor_, options_);
  }
  template <class T>
  DeviceBuffer view(std::vector<T>& values) const {
    return {values.data(), int64_t(values.size() * sizeof(T)), options_.device, nullptr};
  }
  int next() const { return (world_.rank() + 1) % world_.size(); }
  int previous() const { return (world_.rank() + world_.size() - 1) % world_.size(); }
  void TearDown() override { EXPECT_EQ(vendor_->violations, Calls{}); }

  int64_t count(const std::string& call) const { return std::ranges::count(vendor_->calls, call); }

  /// The one line of the error that `action` ends in.
  static std::string error_of(const std::function<void()>& action) {
    try {
      action();
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ExitCode::internal);
      return error.what();
    }
    return "no error";
  }
  std::string line(const std::string& rest) const {
    return fmt::format("NCCL on rank {} of {} (GPU {}, 0000:0{}:00.0): {}", world_.rank(),
                       world_.size(), world_.rank(), world_.rank(), rest);
  }

  static NcclOptions impatient() {
    NcclOptions options;
    options.timeout = 50ms;
    return options;
  }

  Communicator world_ = Communicator::world();
  std::shared_ptr<NcclDouble> vendor_ = std::make_shared<NcclDouble>();
  NcclOptions options_ = impatient();
};

TEST_F(NcclBackendTest, OneIdACommunicator) {
  options_.timeout = 60s;
  const auto ranks = connect();
  EXPECT_EQ(count("unique_id"), world_.rank() == 0 ? 1 : 0);
  EXPECT_EQ(count(fmt::format("init {} of {}", world_.rank(), world_.size())), 1);
}

TEST_F(NcclBackendTest, GroupsWhatIsExchanged) {
  options_.timeout = 60s;
  options_.chunk_bytes = 1000;
  const auto ranks = connect();
  std::vector<char> out(2500, char(world_.rank())), in(2500), nothing;
  vendor_->calls.clear();
  const DeviceMessage messages[] = {{Kind::send, next(), view(out)},
                                    {Kind::send, next(), view(nothing)},
                                    {Kind::receive, previous(), view(in)}};
  ranks.exchange(messages).wait();
  EXPECT_EQ(in, std::vector<char>(2500, char(previous())));
  const auto to = fmt::format(" to {}", next()), from = fmt::format(" from {}", previous());
  // Both buffers' streams are waited for; the end of the work is an event, recorded when NCCL has
  // started it.
  EXPECT_EQ(vendor_->calls,
            (Calls{"record", "wait", "record", "wait", "group_start", "send 1000" + to,
                   "send 1000" + to, "send 500" + to, "receive 1000" + from, "receive 1000" + from,
                   "receive 500" + from, "group_end", "record"}));
}

TEST_F(NcclBackendTest, CountsElementsOfTheirType) {
  options_.timeout = 60s;
  options_.chunk_bytes = 1001;  // cut to whole elements
  const auto ranks = connect();
  std::vector<int64_t> wide(126, 1);
  std::vector<int32_t> narrow(3, world_.rank());
  vendor_->calls.clear();
  ranks.all_reduce(view(wide), Element::int64, ReduceOp::sum).wait();
  ranks.all_reduce(view(narrow), Element::int32, ReduceOp::max).wait();
  EXPECT_EQ(wide, std::vector<int64_t>(126, world_.size()));
  EXPECT_EQ(narrow, std::vector<int32_t>(3, world_.size() - 1));
  Calls reductions;
  std::ranges::copy_if(vendor_->calls, std::back_inserter(reductions),
                       [](const std::string& call) { return call.starts_with("all_reduce"); });
  EXPECT_EQ(reductions, (Calls{"all_reduce 125 of int64 by sum", "all_reduce 1 of int64 by sum",
                               "all_reduce 3 of int32 by max"}));
  std::vector<char> odd(7);
  EXPECT_EQ(error_of([&] { ranks.all_reduce(view(odd), Element::int32, ReduceOp::sum); }),
            "all_reduce of 7 bytes, expected a multiple of 4");
}

TEST_F(NcclBackendTest, WaitsForTheStreamThatComputes) {
  options_.timeout = 60s;
  const auto ranks = connect();
  std::vector<int> values(100, -1);
  vendor_->launch(nullptr, 50, [&] { std::ranges::fill(values, world_.rank()); });
  ranks.broadcast(view(values), world_.size() - 1).wait();
  EXPECT_EQ(values, std::vector<int>(100, world_.size() - 1));
}

TEST_F(NcclBackendTest, RequestsMayBeFinishedInAnyOrder) {
  options_.timeout = 60s;
  const auto ranks = connect();
  std::vector<int> first(10, world_.rank()), second(10, 5 * world_.rank());
  Request one = ranks.broadcast(view(first), 0);
  Request two = ranks.broadcast(view(second), world_.size() - 1);
  two.wait();
  one.wait();
  EXPECT_EQ(first, std::vector<int>(10, 0));
  EXPECT_EQ(second, std::vector<int>(10, 5 * (world_.size() - 1)));
}

TEST_F(NcclBackendTest, BytesOfTheDeviceAreCounted) {
  if (world_.size() == 1) GTEST_SKIP() << "needs two ranks";
  options_.timeout = 60s;
  const auto ranks = connect();
  const int64_t before = world_.activity().bytes_sent();
  std::vector<char> out(100), in(100);
  ranks.broadcast(view(out), 0).wait();
  const DeviceMessage messages[] = {{Kind::send, next(), view(out)},
                                    {Kind::receive, previous(), view(in)}};
  ranks.exchange(messages).wait();
  EXPECT_EQ(world_.activity().bytes_sent() - before, world_.rank() == 0 ? 200 : 100);
}

TEST_F(NcclBackendTest, EmptyMessagesAreNoCalls) {
  options_.timeout = 60s;
  const auto ranks = connect();
  std::vector<char> nothing;
  vendor_->calls.clear();
  EXPECT_TRUE(ranks.broadcast(view(nothing), 0).done());
  EXPECT_TRUE(ranks.all_reduce(view(nothing), Element::int64, ReduceOp::sum).done());
  const DeviceMessage message{Kind::send, next(), view(nothing)};
  EXPECT_TRUE(ranks.exchange({&message, 1}).done());
  EXPECT_EQ(vendor_->calls, Calls{});
}

TEST_F(NcclBackendTest, HostMemoryGoesByMpi) {
  options_.timeout = 60s;
  const auto ranks = connect();
  vendor_->calls.clear();
  std::vector<int64_t> values{1};
  ranks.all_reduce(std::span(values), ReduceOp::sum);
  ranks.barrier();
  EXPECT_EQ(values[0], world_.size());
  EXPECT_EQ(vendor_->calls, Calls{});
}

TEST_F(NcclBackendTest, FinalisesBeforeItDestroys) {
  options_.timeout = 60s;
  { const auto ranks = connect(); }
  const Calls end(vendor_->calls.end() - 3, vendor_->calls.end());
  EXPECT_EQ(end, (Calls{"finalize", "destroy", "destroy_stream"}));
  EXPECT_EQ(count("abort"), 0);
}

TEST_F(NcclBackendTest, UnfinishedWorkIsAborted) {
  {
    const auto ranks = connect();
    vendor_->stalled = true;
    std::vector<int> values(10);
    const Request given_up = ranks.broadcast(view(values), 0);
  }
  EXPECT_EQ(count("abort"), 1);
  EXPECT_EQ(count("finalize"), 0);
}

TEST_F(NcclBackendTest, SilenceIsAbortedWithOneLine) {
  const auto ranks = connect();
  vendor_->stalled = true;
  std::vector<int> values(10);
  Request request = ranks.broadcast(view(values), 0);
  const auto expected = line(
      "broadcast of 40 bytes from rank 0: no answer from the other ranks for 0.05 s; the "
      "communicator is aborted");
  EXPECT_EQ(error_of([&] { request.wait(); }), expected);
  EXPECT_EQ(count("abort"), 1);
  // It stays ended, and says the same.
  EXPECT_EQ(error_of([&] { request.wait(); }), expected);
  EXPECT_EQ(error_of([&] { ranks.broadcast(view(values), 0); }), expected);
  EXPECT_EQ(count("abort"), 1);
}

TEST_F(NcclBackendTest, AMessageThatNobodySendsTimesOut) {
  if (world_.size() == 1) GTEST_SKIP() << "needs two ranks";
  const auto ranks = connect();
  if (world_.rank() == 0) {
    std::vector<char> in(100);
    const DeviceMessage message{Kind::receive, 1, view(in)};
    Request request = ranks.exchange({&message, 1});
    EXPECT_NE(error_of([&] { request.wait(); }).find("1 messages (0 bytes out, 100 bytes in)"),
              std::string::npos);
    EXPECT_EQ(count("abort"), 1);
  }
  world_.barrier();
}

TEST_F(NcclBackendTest, SlownessIsWaitedForWhilePeersAreAlive) {
  options_.timeout = 5ms;
  int asked = 0;
  options_.peers_alive = [&] { return ++asked < 4; };
  const auto ranks = connect();
  asked = 0;
  vendor_->stalled = true;
  std::vector<int> values(10);
  Request request = ranks.broadcast(view(values), 0);
  EXPECT_NE(error_of([&] { request.wait(); }), "no error");
  EXPECT_EQ(asked, 4);
}

TEST_F(NcclBackendTest, WaitsAreNotedForTheWatchdog) {
  options_.timeout = 5ms;
  Activity::Now seen;
  options_.peers_alive = [&] {
    seen = world_.activity().now();
    return false;
  };
  const auto ranks = connect();
  EXPECT_EQ(&ranks.activity(), &world_.activity());
  vendor_->stalled = true;
  std::vector<int> values(10);
  Request request = ranks.broadcast(view(values), 0);
  EXPECT_NE(error_of([&] { request.wait(); }), "no error");
  EXPECT_TRUE(seen.waiting);
  EXPECT_EQ(seen.wait.what, "broadcast by NCCL");
  EXPECT_EQ(seen.wait.peer, 0);
}

TEST_F(NcclBackendTest, HostMessagesWaitForTheirReceivers) {
  if (world_.size() == 1) GTEST_SKIP() << "needs two ranks";
  options_.timeout = 60s;
  const auto ranks = connect();
  std::vector<std::byte> data(8);
  if (world_.rank() == 0) {
    Request sent = ranks.send_until_taken(data, 1, 4);
    for (int i = 0; i < 100; ++i) EXPECT_FALSE(sent.done());
    ranks.barrier();
    sent.wait();
  } else {
    ranks.barrier();
    if (world_.rank() == 1) ranks.receive(data, 0, 4).wait();
  }
}

TEST_F(NcclBackendTest, AnAsynchronousErrorAborts) {
  options_.timeout = 60s;
  const auto ranks = connect();
  std::vector<int64_t> values(4);
  Request request = ranks.all_reduce(view(values), Element::int64, ReduceOp::sum);
  vendor_->stalled = true;
  vendor_->asynchronous = "remote process exited\nor there was a network error";
  EXPECT_EQ(error_of([&] { request.wait(); }),
            line("all_reduce of 32 bytes: remote process exited or there was a network error; the "
                 "communicator is aborted"));
  EXPECT_EQ(count("abort"), 1);
}

TEST_F(NcclBackendTest, AFailedCallAborts) {
  options_.timeout = 60s;
  const auto ranks = connect();
  std::vector<int> values(4);
  vendor_->failing_call = "group_end";
  EXPECT_EQ(error_of([&] { ranks.broadcast(view(values), 0); }),
            line("broadcast of 16 bytes from rank 0: group_end was told to fail; the communicator "
                 "is aborted"));
  EXPECT_EQ(count("abort"), 1);
}

TEST_F(NcclBackendTest, ACommunicatorThatIsNeverReadyIsAborted) {
  vendor_->init_hangs = true;
  EXPECT_EQ(error_of([&] { connect(); }),
            line("making the communicator: no answer from the other ranks for 0.05 s; the "
                 "communicator is aborted"));
  EXPECT_EQ(count("abort"), 1);
  EXPECT_EQ(count("destroy_stream"), 1);
}

TEST_F(NcclBackendTest, AnIdThatFailsIsEveryRanksError) {
  if (world_.rank() == 0) vendor_->failing_call = "unique_id";
  EXPECT_EQ(error_of([&] { connect(); }),
            fmt::format("NCCL: rank 0 of {} gave no unique id: unique_id was told to fail",
                        world_.size()));
  EXPECT_EQ(count("abort"), 0);
}

TEST_F(NcclBackendTest, MemoryOfAnotherGpuIsRefused) {
  options_.timeout = 60s;
  const auto ranks = connect();
  std::vector<int> values(4);
  DeviceBuffer elsewhere = view(values);
  elsewhere.device = 7;
  EXPECT_EQ(error_of([&] { ranks.broadcast(elsewhere, 0); }),
            line("broadcast of 16 bytes from rank 0: the memory is on GPU 7"));
  EXPECT_EQ(error_of([&] { ranks.broadcast(view(values), 9); }),
            fmt::format("broadcast names rank 9 of a communicator of {}", world_.size()));
  EXPECT_EQ(count("abort"), 0);
}

TEST_F(NcclBackendTest, WorksWhereverTheCurrentDeviceWas) {
  options_.timeout = 60s;
  const auto ranks = connect();
  vendor_->set_device(6);
  std::vector<int> values(4, world_.rank());
  ranks.broadcast(view(values), 0).wait();
  EXPECT_EQ(values, std::vector<int>(4, 0));
}

TEST(HostBackends, RefuseDeviceMemory) {
  int value = 0;
  const DeviceBuffer buffer{&value, 4, 0, nullptr};
  for (const auto& ranks : {Communicator::world(), Communicator::local()})
    EXPECT_THROW(ranks.broadcast(buffer, 0), Error);
}

}  // namespace
}  // namespace selfcal
