#include "base/freed_memory.hpp"

#include <malloc.h>
#include <unistd.h>

#include <algorithm>
#include <fstream>

namespace selfcal {
namespace {

/// Bytes of the process.
struct Usage {
  int64_t in_use = 0;    // of the allocator's memory
  int64_t resident = 0;  // without what is mapped from files

  /// What other threads free meanwhile does not count as resident and in nobody's use.
  static Usage now() {
    int64_t all = 0, resident = 0, mapped = 0;  // pages
    const int64_t before = allocated();
    std::ifstream("/proc/self/statm") >> all >> resident >> mapped;
    return {std::max(before, allocated()), (resident - mapped) * sysconf(_SC_PAGESIZE)};
  }

  static int64_t allocated() {
    const struct mallinfo2 info = mallinfo2();
    return static_cast<int64_t>(info.uordblks + info.hblkhd);
  }
};

}  // namespace

void keep_freed_memory() {
  constexpr int tensor = 64 << 20, kept = 256 << 20;
  mallopt(M_ARENA_MAX, 1);
  mallopt(M_MMAP_THRESHOLD, tensor);
  mallopt(M_TRIM_THRESHOLD, kept);
}

void return_freed_memory() { malloc_trim(0); }

void FreedMemory::bound() {
  const Usage now = Usage::now();
  most_in_use_ = std::max(most_in_use_, now.in_use);
  if (now.resident - beside_ <= most_in_use_ + most_kept) return;
  return_freed_memory();
  const Usage after = Usage::now();
  beside_ = after.resident - after.in_use;
}

}  // namespace selfcal
