// Ends a job that has gone silent instead of letting it hang.
//
// Every rank has a thread that tells what the rank's main thread does: the phase, the wait, and for
// how long it has made no progress. Progress is a boundary that the main thread passes (tile,
// token, message, phase) or, while it does not wait, processor time that the process uses: a long
// library call is work, not silence. (A main thread that spins in an endless loop of its own looks
// like work, too.) The words go to ranks 0 and 1. Rank 0 judges all ranks, rank 1 judges rank 0,
// and a rank that hears neither of them leaves by itself, since it is the one that is cut off.
//
// Who finds the job silent says so and tells all others; every rank that can leaves with the exit
// code of I/O, and the launcher ends the rest. (mpirun waits for a daemon on a lost host until TCP
// gives it up: 15 minutes, unless net.ipv4.tcp_retries2 is lower.)
#pragma once
#include <atomic>
#include <memory>
#include <string>
#include <thread>

#include "comm/attendance.hpp"
#include "comm/communicator.hpp"
#include "comm/heartbeat.hpp"

namespace selfcal {

class Watchdog {
 public:
  /// Collective. Borrows `world`. A job of one rank has nobody to watch. `timeout`: seconds.
  Watchdog(const Communicator& world, double timeout);
  /// Independent; all ranks must have agreed that their work has ended.
  ~Watchdog();
  Watchdog(const Watchdog&) = delete;
  Watchdog& operator=(const Watchdog&) = delete;

 private:
  void watch();
  void beat(double now);
  void tell(Heartbeat::Kind kind) const;
  void judge(double now);
  void warn_of_unheard(double now);
  [[noreturn]] void end_job(const std::string& reason, double now) const;
  [[noreturn]] static void leave();

  bool judges() const { return rank_ < 2; }
  double seconds() const;  // since the start

  const Communicator& world_;
  const int rank_;
  const double timeout_;
  const double interval_;
  const Activity::Clock::time_point start_;
  std::unique_ptr<HeartbeatSocket> socket_;
  std::unique_ptr<Attendance> attendance_;

  // What this rank says of itself.
  Heartbeat mine_;
  uint64_t progress_ = 0;
  double moved_at_ = 0, beat_at_ = 0, processor_ = 0;

  bool warned_ = false;
  std::atomic<bool> closing_ = false;
  std::thread thread_;
};

}  // namespace selfcal
