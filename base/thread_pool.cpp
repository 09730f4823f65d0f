#include "base/thread_pool.hpp"

#include <utility>

namespace selfcal {

ThreadPool::ThreadPool(int threads, std::function<void()> on_start) {
  for (int i = 1; i < threads; ++i) {
    workers_.emplace_back([this, on_start] {
      if (on_start) on_start();
      work();
    });
  }
}

ThreadPool::~ThreadPool() {
  {
    std::lock_guard lock(mutex_);
    closing_ = true;
  }
  wake_.notify_all();
  for (auto& worker : workers_) worker.join();
}

void ThreadPool::parallel_for(int64_t count, const std::function<void(int64_t)>& body) {
  if (count <= 0) return;
  if (workers_.empty() || count == 1 || busy_.exchange(true)) {
    for (int64_t i = 0; i < count; ++i) body(i);
    return;
  }
  std::unique_lock lock(mutex_);
  body_ = &body;
  next_ = 0;
  count_ = count;
  error_ = nullptr;
  wake_.notify_all();
  run_tiles(lock);
  done_.wait(lock, [this] { return running_ == 0 && next_ >= count_; });
  body_ = nullptr;
  lock.unlock();
  busy_ = false;
  if (error_) std::rethrow_exception(std::exchange(error_, nullptr));
}

void ThreadPool::work() {
  std::unique_lock lock(mutex_);
  while (true) {
    wake_.wait(lock, [this] { return closing_ || (body_ != nullptr && next_ < count_); });
    if (closing_) return;
    run_tiles(lock);
    if (running_ == 0) done_.notify_all();
  }
}

void ThreadPool::run_tiles(std::unique_lock<std::mutex>& lock) {
  while (body_ != nullptr && next_ < count_) {
    const int64_t tile = next_++;
    const auto* body = body_;
    ++running_;
    lock.unlock();
    std::exception_ptr error;
    try {
      (*body)(tile);
    } catch (...) {
      error = std::current_exception();
    }
    lock.lock();
    --running_;
    if (error) {
      if (!error_) error_ = error;
      next_ = count_;
    }
  }
}

}  // namespace selfcal
