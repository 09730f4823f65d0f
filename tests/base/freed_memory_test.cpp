#include "base/freed_memory.hpp"

#include <gtest/gtest.h>
#include <unistd.h>

#include <fstream>
#include <memory>
#include <vector>

namespace selfcal {
namespace {

int64_t resident() {
  int64_t all = 0, pages = 0;
  std::ifstream("/proc/self/statm") >> all >> pages;
  return pages * sysconf(_SC_PAGESIZE);
}

using Block = std::unique_ptr<char[]>;

std::vector<Block> blocks(int64_t bytes, int64_t each) {
  std::vector<Block> all;
  for (int64_t held = 0; held < bytes; held += each)
    all.push_back(std::make_unique<char[]>(static_cast<size_t>(each)));
  return all;
}

TEST(FreedMemoryTest, GapsThatNothingFitsAreGivenBack) {
#ifdef __SANITIZE_ADDRESS__
  GTEST_SKIP() << "the sanitizer has an allocator of its own, which gives nothing back";
#endif
  constexpr int64_t small = 1 << 18, gaps = 2 * FreedMemory::most_kept;
  keep_freed_memory();
  FreedMemory freed;
  const int64_t before = resident();
  std::vector<Block> held = blocks(2 * gaps, small);
  freed.bound();
  EXPECT_GE(resident() - before, 2 * gaps) << "all is in use";

  for (size_t i = 0; i < held.size(); i += 2) held[i].reset();
  freed.bound();
  EXPECT_GE(resident() - before, 2 * gaps) << "as much was needed, and may be again";

  const std::vector<Block> wide = blocks(gaps, 2 * small);
  EXPECT_GE(resident() - before, 3 * gaps);
  freed.bound();
  EXPECT_LE(resident() - before, 2 * gaps + FreedMemory::most_kept);
}

/// A reading that another thread's munmap falls into does not raise the bound.
TEST(FreedMemoryTest, WhatIsFoundOnceIsNotBelieved) {
  constexpr int64_t kept = FreedMemory::most_kept, in_use = 4 * kept, libraries = kept / 2,
                    being_freed = 3 * kept;
  const MemoryUsage much{in_use, in_use + libraries + 2 * kept}, rest{in_use, in_use + libraries},
      wrong{in_use, in_use + libraries + being_freed}, bearable{in_use, in_use + libraries + kept};
  std::vector<MemoryUsage> readings;
  int given_back = 0;
  FreedMemory freed(
      [&] {
        const MemoryUsage reading = readings.front();
        readings.erase(readings.begin());
        return reading;
      },
      [&] { ++given_back; });
  const auto bound = [&](std::vector<MemoryUsage> told) {
    readings = std::move(told);
    freed.bound();
    EXPECT_TRUE(readings.empty()) << readings.size();
  };
  bound({much, rest});
  bound({much, rest});
  EXPECT_EQ(given_back, 2);
  bound({bearable});
  EXPECT_EQ(given_back, 2) << "the libraries' memory is known";
  bound({much, wrong});
  bound({much, rest});
  EXPECT_EQ(given_back, 4);
  bound({bearable});
  EXPECT_EQ(given_back, 4);
}

}  // namespace
}  // namespace selfcal
