#include "base/thread_pool.hpp"

#include <sched.h>

#include <utility>

namespace selfcal {

void Signal::pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#else
  std::this_thread::yield();
#endif
}

/// About 50 microseconds of looking, unless the threads would take the processor from each other.
static int patience(int threads) {
  cpu_set_t allowed;
  CPU_ZERO(&allowed);
  const bool known = sched_getaffinity(0, sizeof(allowed), &allowed) == 0;
  return known && threads <= CPU_COUNT(&allowed) ? 2000 : 0;
}

ThreadPool::ThreadPool(int threads, const std::function<void()>& on_start)
    : begun_(patience(threads)), finished_(patience(threads)) {
  for (int i = 1; i < threads; ++i) {
    workers_.emplace_back([this, on_start] {
      if (on_start) on_start();
      work();
    });
  }
}

ThreadPool::~ThreadPool() {
  closing_ = true;
  begun_.notify();
  for (auto& worker : workers_) worker.join();
}

void ThreadPool::parallel_for(int64_t count, const std::function<void(int64_t)>& body) {
  if (count <= 0) return;
  if (workers_.empty() || count == 1 || busy_.exchange(true)) {
    for (int64_t i = 0; i < count; ++i) body(i);
    return;
  }
  body_ = &body;
  count_ = count;
  failed_ = false;
  unfinished_ = count;
  const uint32_t turn = ticket_.load().turn + 1;
  ticket_ = {turn, static_cast<uint32_t>(count)};
  begun_.notify();
  run_tiles(turn);
  finished_.wait([this] { return unfinished_ == 0; });
  const std::exception_ptr error = std::exchange(error_, nullptr);
  busy_ = false;
  if (error) std::rethrow_exception(error);
}

void ThreadPool::work() {
  uint32_t turn = 0;
  while (true) {
    begun_.wait([&] { return closing_ || ticket_.load().turn != turn; });
    if (closing_) return;
    turn = ticket_.load().turn;
    run_tiles(turn);
  }
}

void ThreadPool::run_tiles(uint32_t turn) {
  Ticket ticket = ticket_.load();
  while (ticket.turn == turn && ticket.left > 0) {
    if (!ticket_.compare_exchange_weak(ticket, {turn, ticket.left - 1})) continue;
    run(count_ - ticket.left);
    if (--unfinished_ == 0) finished_.notify();
    ticket = ticket_.load();
  }
}

void ThreadPool::run(int64_t tile) noexcept {
  if (failed_) return;
  try {
    (*body_)(tile);
  } catch (...) {
    std::lock_guard lock(error_mutex_);
    if (!error_) error_ = std::current_exception();
    failed_ = true;
  }
}

}  // namespace selfcal
