// What the allocator does with freed memory.
#pragma once
#include <cstdint>
#include <functional>
#include <utility>

namespace selfcal {

/// Every leaf takes and frees the same tensors: their pages stay with the process, up to a limit,
/// rather than be cleared by the kernel again each time. For the start of a program, before there
/// are threads.
void keep_freed_memory();

/// Gives the pages of all freed memory back to the system, those between tensors that live too: for
/// the end of a piece of work whose tensors do not fit the gaps of the one before. Takes
/// milliseconds.
void return_freed_memory();

/// Bytes of the process.
struct MemoryUsage {
  int64_t in_use = 0;    // of the allocator's memory
  int64_t resident = 0;  // without what is mapped from files

  /// What other threads free meanwhile counts as in use, but for what the system is about to take.
  static MemoryUsage now();
};

/// Keeps the memory of a process near what it needs: gaps between tensors that live, which the next
/// ones do not fit, would grow to more than that. Pages that are given back cost time to be cleared
/// again: keeping half as much takes a job of 64 x 512 tokens of a small model 13 % longer, keeping
/// four times as much none less.
class FreedMemory {
 public:
  /// How much more than was ever in use when bound() was called may be resident, in bytes.
  static constexpr int64_t most_kept = 256 << 20;

  explicit FreedMemory(std::function<MemoryUsage()> usage = MemoryUsage::now,
                       std::function<void()> give_back = return_freed_memory)
      : usage_(std::move(usage)), give_back_(std::move(give_back)) {}

  /// To be called between pieces of work, of some milliseconds or more: notes what is in use, and
  /// returns freed memory if too much is resident. Takes microseconds where it is not.
  void bound();

 private:
  std::function<MemoryUsage()> usage_;
  std::function<void()> give_back_;
  int64_t most_in_use_ = 0;
  int64_t beside_ = 0;       // resident, and not the allocator's
  int64_t last_beside_ = 0;  // as it was found last
};

}  // namespace selfcal
