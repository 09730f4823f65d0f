// A wait for the other ranks is idle time; work, and work that fails, is not.
#include "pipeline/timed_agreement.hpp"

#include <gtest/gtest.h>

#include <thread>

#include "base/error.hpp"

namespace selfcal {
namespace {

constexpr double pause = 0.5;

double seconds_of(PhaseTimer& timer, Phase phase) {
  return timer.seconds()[static_cast<size_t>(phase)];
}

/// The last rank is late by `pause`.
void be_late(const Communicator& ranks) {
  if (ranks.rank() + 1 == ranks.size())
    std::this_thread::sleep_for(std::chrono::duration<double>(pause));
}

TEST(TimedAgreement, WaitsForOthersAreIdle) {
  const auto ranks = Communicator::world();
  PhaseTimer timer;
  {
    const auto scope = timer.measure(Phase::solve);
    agree(ranks, timer, [&] { be_late(ranks); });
  }
  const bool late = ranks.rank() + 1 == ranks.size();
  EXPECT_GE(seconds_of(timer, late ? Phase::solve : Phase::idle), pause / 2);
  EXPECT_LT(seconds_of(timer, late ? Phase::idle : Phase::solve), pause);
}

TEST(TimedAgreement, WaitsForARankThatFailsAreIdle) {
  const auto ranks = Communicator::world();
  PhaseTimer timer;
  {
    const auto scope = timer.measure(Phase::solve);
    EXPECT_THROW(agree(ranks, timer,
                       [&] {
                         be_late(ranks);
                         if (ranks.rank() + 1 == ranks.size()) fail(ExitCode::data, "late");
                       }),
                 AgreedError);
  }
  const bool late = ranks.rank() + 1 == ranks.size();
  EXPECT_GE(seconds_of(timer, late ? Phase::solve : Phase::idle), pause / 2);
}

}  // namespace
}  // namespace selfcal
