#include "base/thread_pool.hpp"

#include <gtest/gtest.h>

#include <atomic>
#include <numeric>

namespace selfcal {
namespace {

TEST(ThreadPool, RunsEveryTileOnce) {
  for (int threads : {1, 2, 4}) {
    ThreadPool pool(threads);
    for (int64_t count : {0, 1, 2, 1000}) {
      std::vector<std::atomic<int>> runs(static_cast<size_t>(count));
      pool.parallel_for(count, [&](int64_t tile) { ++runs[static_cast<size_t>(tile)]; });
      for (const auto& times : runs) EXPECT_EQ(times, 1);
    }
  }
}

TEST(ThreadPool, RethrowsTheErrorOfATile) {
  ThreadPool pool(3);
  EXPECT_THROW(pool.parallel_for(100,
                                 [](int64_t tile) {
                                   if (tile == 57) throw std::runtime_error("57");
                                 }),
               std::runtime_error);
  int64_t sum = 0;
  std::mutex mutex;
  pool.parallel_for(10, [&](int64_t tile) {
    std::lock_guard lock(mutex);
    sum += tile;
  });
  EXPECT_EQ(sum, 45);
}

TEST(ThreadPool, ManyShortCallsAndSleepsBetween) {
  for (int threads : {2, 4}) {
    ThreadPool pool(threads);
    std::atomic<int64_t> total = 0;
    for (int round = 0; round < 3000; ++round) {
      pool.parallel_for(5, [&](int64_t tile) { total += tile; });
      EXPECT_EQ(total, 10 * (round + 1));
      if (round % 500 == 0) std::this_thread::sleep_for(std::chrono::milliseconds(2));
    }
  }
}

TEST(ThreadPool, LeavesTilesOutAfterAnError) {
  ThreadPool pool(2);
  std::atomic<int64_t> run = 0;
  EXPECT_THROW(pool.parallel_for(1000000,
                                 [&](int64_t) {
                                   if (++run == 5) throw std::runtime_error("5");
                                 }),
               std::runtime_error);
  EXPECT_LT(run, 1000000);
}

// A read-ahead thread once used the pool while the main thread did, and both waited for ever.
TEST(ThreadPool, ServesSeveralCallersAndNestedCalls) {
  ThreadPool pool(2);
  std::atomic<int64_t> total = 0;
  const auto work = [&] {
    for (int round = 0; round < 2000; ++round)
      pool.parallel_for(8, [&](int64_t) { pool.parallel_for(2, [&](int64_t) { ++total; }); });
  };
  std::thread other(work);
  work();
  other.join();
  EXPECT_EQ(total, 2 * 2000 * 8 * 2);
}

}  // namespace
}  // namespace selfcal
