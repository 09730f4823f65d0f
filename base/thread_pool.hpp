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

class ThreadPool {
 public:
  /// `threads` counts the calling thread; at least 1. `on_start` runs first in each worker (to pin
  /// library threads).
  explicit ThreadPool(int threads, std::function<void()> on_start = {});
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int size() const noexcept { return static_cast<int>(workers_.size()) + 1; }

  /// Calls body(0) ... body(count - 1), each once, on the pool and the calling thread, and waits
  /// for all. The first exception thrown by a body is rethrown here. Not reentrant: a body must not
  /// call parallel_for.
  void parallel_for(int64_t count, const std::function<void(int64_t)>& body);

 private:
  void work();
  void run_tiles(std::unique_lock<std::mutex>& lock);

  std::vector<std::thread> workers_;
  std::atomic<bool> busy_ = false;  // a call is using the workers
  std::mutex mutex_;
  std::condition_variable wake_, done_;
  const std::function<void(int64_t)>* body_ = nullptr;
  int64_t next_ = 0, count_ = 0, running_ = 0;
  std::exception_ptr error_;
  bool closing_ = false;
};

}  // namespace selfcal
