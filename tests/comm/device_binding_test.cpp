#include "comm/nccl/device_binding.hpp"

#include <gtest/gtest.h>

#include "base/error.hpp"
#include "tests/comm/nccl_double.hpp"

namespace selfcal {
namespace {

using testing_support::NcclDouble;

const Communicator& world() {
  static const Communicator all = Communicator::world();
  return all;
}

std::string error_of(NcclDouble& vendor, const std::string& host) {
  try {
    bind_devices(world(), vendor, host);
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ExitCode::usage);
    return error.what();
  }
  return "no error";
}

TEST(DeviceBinding, RankNOfAHostTakesGpuN) {
  NcclDouble vendor;
  const auto bindings = bind_devices(world(), vendor, "n1");
  ASSERT_EQ(static_cast<int>(bindings.size()), world().size());
  for (int rank = 0; rank < world().size(); ++rank) {
    EXPECT_EQ(bindings[size_t(rank)].device, rank);
    EXPECT_EQ(describe(rank, bindings[size_t(rank)]),
              fmt::format("rank {0}: GPU {0} of n1, 0000:0{0}:00.0, double", rank));
  }
}

TEST(DeviceBinding, EveryHostCountsItsOwn) {
  NcclDouble vendor;
  vendor.devices = 2;
  const auto bindings = bind_devices(world(), vendor, world().rank() % 2 == 0 ? "even" : "odd");
  for (int rank = 0; rank < world().size(); ++rank) {
    EXPECT_EQ(bindings[size_t(rank)].device, rank / 2);
    EXPECT_EQ(bindings[size_t(rank)].host, rank % 2 == 0 ? "even" : "odd");
  }
}

TEST(DeviceBinding, TheOnlyOneThatARankSeesIsItsOwn) {
  NcclDouble vendor;
  vendor.devices = 1;
  vendor.bus_of = [](int) { return fmt::format("0000:{}0:00.0", world().rank()); };
  EXPECT_EQ(bind_devices(world(), vendor, "n1")[size_t(world().rank())].device, 0);
}

TEST(DeviceBinding, TwoRanksOnOneGpuAreAnError) {
  if (world().size() < 2) GTEST_SKIP() << "needs two ranks";
  NcclDouble vendor;
  vendor.devices = 1;  // all see the same
  EXPECT_EQ(error_of(vendor, "n1"),
            "ranks 0 and 1 share GPU 0000:00:00.0 of host n1, expected one rank a GPU");
  // The same address on two hosts is two GPUs.
  EXPECT_EQ(error_of(vendor, fmt::format("n{}", world().rank())), "no error");
}

TEST(DeviceBinding, MoreRanksThanGpusAreAnError) {
  if (world().size() < 3) GTEST_SKIP() << "needs three ranks";
  NcclDouble vendor;
  vendor.devices = 2;
  EXPECT_EQ(error_of(vendor, "n1"),
            fmt::format("host n1 has {} ranks and 2 GPUs, expected one rank a GPU [rank 2]",
                        world().size()));
}

TEST(DeviceBinding, NoGpuIsAnError) {
  NcclDouble vendor;
  vendor.devices = 0;
  EXPECT_EQ(error_of(vendor, "n1").find("no GPU is visible on host n1"), 0);
}

}  // namespace
}  // namespace selfcal
