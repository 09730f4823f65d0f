// The threads of one rank. Work is cut into fixed tiles by the caller; which thread runs a tile
// never changes a result.
#pragma once
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <exception>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

namespace selfcal {

/// Waiting for a condition that another thread will make true. Short waits stay on the processor,
/// since putting a thread to sleep and waking it takes longer than a small tile.
class Signal {
 public:
  /// `patience`: how often to look before sleeping.
  explicit Signal(int patience) : patience_(patience) {}

  /// Returns when `ready()`, which reads atomics only.
  template <class Condition>
  void wait(const Condition& ready) {
    for (int i = 0; i < patience_; ++i) {
      if (ready()) return;
      pause();
    }
    std::unique_lock lock(mutex_);
    ++sleepers_;
    wake_.wait(lock, ready);
    --sleepers_;
  }
  /// Call after a condition has become true.
  void notify() {
    if (sleepers_ == 0) return;
    { std::lock_guard lock(mutex_); }
    wake_.notify_all();
  }

 private:
  static void pause();

  const int patience_;
  std::atomic<int> sleepers_ = 0;
  std::mutex mutex_;
  std::condition_variable wake_;
};

class ThreadPool {
 public:
  /// `threads` counts the calling thread; at least 1. `on_start` runs first in each worker (to pin
  /// library threads).
  explicit ThreadPool(int threads, const std::function<void()>& on_start = {});
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int size() const noexcept { return static_cast<int>(workers_.size()) + 1; }

  /// Calls body(0) ... body(count - 1), each once, on the pool and the calling thread, and waits
  /// for all; count < 2^32. The first exception thrown by a body is rethrown here, and tiles not
  /// yet begun are left out. While one call has the workers, calls of other threads and calls from
  /// within a body run on their own thread alone.
  void parallel_for(int64_t count, const std::function<void(int64_t)>& body);

 private:
  void work();
  void run_tiles(uint32_t turn);
  void run(int64_t tile) noexcept;

  // The number of the current parallel_for and how many of its tiles are not yet begun, in one
  // word: a thread that comes late cannot begin a tile of another turn.
  struct Ticket {
    uint32_t turn = 0;
    uint32_t left = 0;
  };
  std::atomic<bool> busy_ = false;  // a call has the workers
  std::atomic<Ticket> ticket_ = Ticket{};
  std::atomic<int64_t> unfinished_ = 0;
  const std::function<void(int64_t)>* body_ = nullptr;
  int64_t count_ = 0;

  std::atomic<bool> failed_ = false;
  std::mutex error_mutex_;
  std::exception_ptr error_;

  std::atomic<bool> closing_ = false;
  Signal begun_, finished_;
  std::vector<std::thread> workers_;
};

}  // namespace selfcal
