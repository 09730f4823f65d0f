// What the ranks of a test find of the network between them.
#include "pipeline/network_rates.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <span>

namespace selfcal {
namespace {

TEST(NetworkRates, ArePlausibleAndTheSameOnAllRanks) {
  const Communicator world = Communicator::world();
  if (world.size() == 1) GTEST_SKIP() << "one rank has no network";
  const NetworkRates rates = measure_network(world);
  EXPECT_GT(rates.bandwidth, 1e5);
  EXPECT_LT(rates.bandwidth, 1e13);
  EXPECT_GT(rates.latency, 1e-9);
  EXPECT_LT(rates.latency, 10);
  for (const auto& other : world.all_gather(std::as_bytes(std::span(&rates, 1)))) {
    ASSERT_EQ(other.size(), sizeof rates);
    EXPECT_TRUE(std::ranges::equal(other, std::as_bytes(std::span(&rates, 1))));
  }
}

}  // namespace
}  // namespace selfcal
