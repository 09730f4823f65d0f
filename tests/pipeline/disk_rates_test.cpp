#include "pipeline/disk_rates.hpp"

#include <gtest/gtest.h>

#include "tests/storage/temporary_folder.hpp"

namespace selfcal {
namespace {

TEST(DiskRatesTest, AreMeasuredAndLeaveNothing) {
  const TemporaryFolder folder;
  const auto rates = measure_disk(folder / "runs" / "not-yet-there");
  ASSERT_TRUE(rates.has_value());
  EXPECT_GT(rates->bandwidth, 1e5);
  EXPECT_GT(rates->commit, 0);
  EXPECT_LT(rates->commit, 60);
  EXPECT_TRUE(fs::is_empty(folder.path()));
}

TEST(DiskRatesTest, AreNotKnownWhereNothingCanBeWritten) {
  EXPECT_FALSE(measure_disk("/dev/null/run").has_value());
}

}  // namespace
}  // namespace selfcal
