// What a rank is doing right now, kept for the watchdog.
#pragma once
#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <mutex>
#include <string_view>

namespace selfcal {

/// What a wait is for. The text must live as long as the program (a literal).
struct Wait {
  static constexpr int all = -1;      // as peer: every rank of a communicator
  static constexpr int none = -1;     // as tag
  static constexpr int anyone = -2;   // as peer
  std::string_view what = "message";  // "receive", "all_reduce"
  int peer = all;                     // world rank
  int tag = none;
};

/// Written by the rank's main thread, read by the watchdog's.
class Activity {
 public:
  using Clock = std::chrono::steady_clock;

  struct Now {
    uint64_t progress = 0;  // grows with every boundary that is passed
    std::string_view phase = "start";
    bool waiting = false;
    Wait wait;
    Clock::time_point since;  // of the wait, or of the phase
  };

  /// Bytes that this rank gave to messages and collectives, each counted once whoever gets them.
  void count_sent(size_t bytes) { sent_ += static_cast<int64_t>(bytes); }
  int64_t bytes_sent() const { return sent_; }

  /// A boundary of a tile, a token, a message: the rank gets on.
  void advance();
  /// From now on the rank is in this phase (a literal); a boundary too.
  void enter(std::string_view phase);
  Now now() const;

  /// `call` is made again and again while the rank waits for others; nothing ends it. It must not
  /// wait itself. Set and called by the main thread only.
  void while_waiting(std::function<void()> call) { while_waiting_ = std::move(call); }
  void wait_step() const {
    if (while_waiting_) while_waiting_();
  }

  /// The rank waits while this lives. Waits nest: a wait may serve others meanwhile.
  class Waiting {
   public:
    Waiting(Activity& activity, const Wait& wait);
    ~Waiting();
    Waiting(const Waiting&) = delete;
    Waiting& operator=(const Waiting&) = delete;

   private:
    Activity& activity_;
    Now outer_;
  };

 private:
  std::atomic<int64_t> sent_ = 0;
  mutable std::mutex mutex_;
  Now now_{0, "start", false, {}, Clock::now()};
  std::function<void()> while_waiting_;
};

}  // namespace selfcal
