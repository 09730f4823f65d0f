#include "comm/agreement.hpp"

#include <gtest/gtest.h>

#include "base/stop_signal.hpp"

namespace selfcal {
namespace {

TEST(Agreement, NoErrorIsNoError) {
  const auto ranks = Communicator::world();
  EXPECT_NO_THROW(agree(ranks, [] {}));
}

TEST(Agreement, OneRanksErrorIsEveryRanks) {
  const auto ranks = Communicator::world();
  for (int failing = 0; failing < ranks.size(); ++failing) {
    try {
      agree(ranks, [&] {
        if (ranks.rank() >= failing) fail(ExitCode::data, "tensor {} is bad", ranks.rank());
      });
      FAIL() << "no error";
    } catch (const AgreedError& error) {
      EXPECT_EQ(error.code(), ExitCode::data);
      const auto rank = ranks.size() > 1 ? fmt::format(" [rank {}]", failing) : "";
      EXPECT_EQ(error.what(), fmt::format("tensor {} is bad{}", failing, rank));
    }
  }
}

TEST(Agreement, ForeignExceptionsAreInternal) {
  const auto ranks = Communicator::world();
  try {
    agree(ranks, [] { throw std::logic_error("surprise"); });
    FAIL() << "no error";
  } catch (const AgreedError& error) {
    EXPECT_EQ(error.code(), ExitCode::internal);
  }
}

TEST(Agreement, AStopOfOneRankIsEveryRanks) {
  const auto ranks = Communicator::world();
  EXPECT_THROW(agree(ranks,
                     [&] {
                       if (ranks.rank() + 1 == ranks.size()) throw Stopped();
                     }),
               Stopped);
}

TEST(Agreement, AnyIsTrueForAll) {
  const auto ranks = Communicator::world();
  EXPECT_TRUE(any(ranks, ranks.rank() == ranks.size() - 1));
  EXPECT_FALSE(any(ranks, false));
}

}  // namespace
}  // namespace selfcal
