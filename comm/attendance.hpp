// Who has been heard of, and whether all is well: what the watchdog knows and how it judges. Pure:
// no sockets, no clock of its own.
#pragma once
#include <optional>
#include <string>
#include <vector>

#include "comm/heartbeat.hpp"

namespace selfcal {

class Attendance {
 public:
  /// `hosts` by rank. `timeout`: seconds of silence that are too long. All times are seconds of one
  /// clock that never goes back.
  Attendance(std::vector<std::string> hosts, double timeout, double now);

  void heard(const Heartbeat& beat, double now);
  /// The watcher itself was not running for so long: nobody could be heard, so nobody was silent.
  void forgive(double seconds);

  /// A sentence that names the rank at fault:
  /// - a rank that was heard once is not heard any more (stopped, host lost, network cut);
  /// - a rank that does not wait passes no boundary and uses no processor;
  /// - all ranks wait, none gets on, and none has left just now: they wait for each other.
  /// A rank that was never heard (UDP is blocked) is not judged, nor is one that has left.
  std::optional<std::string> verdict(double now) const;
  /// The same for one rank's silence alone.
  bool silent(int rank, double now) const;
  /// Ranks that have not been heard at all.
  std::vector<int> never_heard() const;

  /// One line a rank: what it does or waits for, since when; who has been still longest comes
  /// first, at most 64.
  std::vector<std::string> describe(double now) const;

 private:
  struct Entry {
    std::string host;
    std::optional<Heartbeat> last;
    double at = 0;  // when it was heard
  };
  std::string name(size_t rank) const;

  std::vector<Entry> ranks_;
  double timeout_;
};

/// "waits 3.1 s for receive from rank 2, tag 7 (in phase reduce)", "works in phase solve for 2.0
/// s".
std::string describe(const Heartbeat& beat);

}  // namespace selfcal
