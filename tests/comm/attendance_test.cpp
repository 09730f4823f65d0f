#include "comm/attendance.hpp"

#include <gtest/gtest.h>

#include <cstring>

#include "comm/activity.hpp"

namespace selfcal {
namespace {

constexpr double timeout = 10;

Attendance three_ranks() { return Attendance({"h0", "h1", "h2"}, timeout, 0.0); }

Heartbeat beat(int rank, bool waiting, float still) {
  Heartbeat beat;
  beat.rank = rank;
  beat.waiting = waiting;
  beat.still = still;
  beat.peer = Wait::all;
  beat.tag = Wait::none;
  std::strcpy(beat.phase, "solve");
  std::strcpy(beat.wait, "all_reduce");
  return beat;
}

void everyone(Attendance& attendance, double now, bool waiting, float still) {
  for (int rank = 0; rank < 3; ++rank) attendance.heard(beat(rank, waiting, still), now);
}

TEST(Attendance, WorkAndWaitingForItAreHealthyForever) {
  Attendance attendance = three_ranks();
  for (double now = 0; now < 100; ++now) {
    attendance.heard(beat(0, true, static_cast<float>(now)), now);
    attendance.heard(beat(1, true, static_cast<float>(now)), now);
    attendance.heard(beat(2, false, 0), now);
    EXPECT_EQ(attendance.verdict(now), std::nullopt);
  }
}

TEST(Attendance, ASilentRankIsNamed) {
  Attendance attendance = three_ranks();
  everyone(attendance, 1, false, 0);
  for (double now = 2; now <= 11; ++now) {
    attendance.heard(beat(0, true, 0), now);
    attendance.heard(beat(2, true, 0), now);
    EXPECT_EQ(attendance.verdict(now), std::nullopt);
  }
  const auto verdict = attendance.verdict(11.5);
  ASSERT_TRUE(verdict);
  EXPECT_NE(verdict->find("rank 1 on h1 has not been heard for 10.5 s"), std::string::npos);
  EXPECT_TRUE(attendance.silent(1, 11.5));
  EXPECT_FALSE(attendance.silent(0, 11.5));
}

TEST(Attendance, ARankThatStandsStillIsNamed) {
  Attendance attendance = three_ranks();
  everyone(attendance, 50, true, 49);
  attendance.heard(beat(2, false, 12), 50);
  const auto verdict = attendance.verdict(50);
  ASSERT_TRUE(verdict);
  EXPECT_NE(verdict->find("rank 2 on h2 has stood still in phase solve"), std::string::npos);
}

TEST(Attendance, RanksThatWaitForEachOtherEndTheJob) {
  Attendance attendance = three_ranks();
  everyone(attendance, 20, true, 10.5);
  ASSERT_TRUE(attendance.verdict(20));
  attendance.heard(beat(1, true, 3), 20);  // has just begun to wait
  EXPECT_EQ(attendance.verdict(20), std::nullopt);
}

TEST(Attendance, WhoHasLeftOrWasNeverHeardIsNotJudged) {
  Attendance attendance = three_ranks();
  attendance.heard(beat(0, false, 0), 100);
  EXPECT_EQ(attendance.verdict(100), std::nullopt);
  EXPECT_EQ(attendance.never_heard(), (std::vector{1, 2}));
  Heartbeat last = beat(1, false, 0);
  last.kind = Heartbeat::Kind::leaving;
  attendance.heard(last, 1);
  EXPECT_EQ(attendance.verdict(100), std::nullopt);
  attendance.heard(beat(0, true, 50), 100);  // rank 2 may work, for all that is known
  EXPECT_EQ(attendance.verdict(100), std::nullopt);
}

TEST(Attendance, ARankThatHasJustLeftLetsTheOthersGo) {
  Attendance attendance = three_ranks();
  everyone(attendance, 20, true, 15);
  Heartbeat last = beat(2, false, 0);
  last.kind = Heartbeat::Kind::leaving;
  attendance.heard(last, 20);
  EXPECT_EQ(attendance.verdict(21), std::nullopt);
  attendance.heard(beat(0, true, 26), 31);
  attendance.heard(beat(1, true, 26), 31);
  EXPECT_TRUE(attendance.verdict(31));
}

TEST(Attendance, TheWatchersOwnPauseIsForgiven) {
  Attendance attendance = three_ranks();
  everyone(attendance, 1, false, 0);
  attendance.forgive(1000);  // the whole job was suspended
  EXPECT_EQ(attendance.verdict(1005), std::nullopt);
}

TEST(Attendance, DescribesWhoWaitsForWhom) {
  Heartbeat one = beat(0, true, 4);
  one.peer = 2;
  one.tag = 1003;
  one.seconds = 3.14f;
  std::strcpy(one.wait, "receive");
  EXPECT_EQ(describe(one), "waits 3.1 s for receive with rank 2, tag 1003 (phase solve)");
  EXPECT_EQ(Attendance(std::vector<std::string>(100, "host"), timeout, 0).describe(1).size(), 65u);
}

}  // namespace
}  // namespace selfcal
