#include "base/freed_memory.hpp"

#include <malloc.h>
#include <unistd.h>

#include <algorithm>
#include <fstream>
#include <utility>

namespace selfcal {
namespace {

int64_t allocated() {
  const struct mallinfo2 info = mallinfo2();
  return static_cast<int64_t>(info.uordblks + info.hblkhd);
}

}  // namespace

MemoryUsage MemoryUsage::now() {
  int64_t all = 0, resident = 0, mapped = 0;  // pages
  const int64_t before = allocated();
  std::ifstream("/proc/self/statm") >> all >> resident >> mapped;
  return {std::max(before, allocated()), (resident - mapped) * sysconf(_SC_PAGESIZE)};
}

void keep_freed_memory() {
  constexpr int tensor = 64 << 20, kept = 256 << 20;
  mallopt(M_ARENA_MAX, 1);
  mallopt(M_MMAP_THRESHOLD, tensor);
  mallopt(M_TRIM_THRESHOLD, kept);
}

void return_freed_memory() { malloc_trim(0); }

void FreedMemory::bound() {
  const MemoryUsage now = usage_();
  most_in_use_ = std::max(most_in_use_, now.in_use);
  if (now.resident - beside_ <= most_in_use_ + most_kept) return;
  give_back_();
  const MemoryUsage after = usage_();
  // What another thread frees stays resident until the system has taken it: once is not enough.
  const int64_t found = after.resident - after.in_use;
  beside_ = std::min(found, std::exchange(last_beside_, found));
}

}  // namespace selfcal
