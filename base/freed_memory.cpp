#include "base/freed_memory.hpp"

#include <malloc.h>

namespace selfcal {

void keep_freed_memory() {
  constexpr int tensor = 64 << 20, kept = 256 << 20;
  mallopt(M_ARENA_MAX, 1);
  mallopt(M_MMAP_THRESHOLD, tensor);
  mallopt(M_TRIM_THRESHOLD, kept);
}

void return_freed_memory() { malloc_trim(0); }

}  // namespace selfcal
