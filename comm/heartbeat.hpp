// Small messages between the watchdogs of a job, over UDP and so beside MPI: a hung MPI cannot hold
// them up, and one that is lost is followed by the next.
#pragma once
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "comm/communicator.hpp"

namespace selfcal {

/// What a rank says of itself. Sent as it lies in memory, between ranks of one binary.
struct Heartbeat {
  enum class Kind : int32_t {
    alive,    // the rest says what it does
    leaving,  // has finished: will be silent, and that is right
    end_job,  // the watchdog has ended the job: leave at once
  };
  uint64_t job = 0;  // a number that only ranks of one job know
  int32_t rank = 0;
  Kind kind = Kind::alive;
  int32_t waiting = 0;
  int32_t peer = 0;
  int32_t tag = 0;
  float still = 0;    // seconds without progress
  float seconds = 0;  // in the wait or the phase
  char phase[16] = {};
  char wait[36] = {};
};

/// One rank's socket, and where those of the others are.
class HeartbeatSocket {
 public:
  /// Collective: addresses are exchanged. ExitCode::io where this machine gives no socket.
  explicit HeartbeatSocket(const Communicator& world);
  ~HeartbeatSocket();
  HeartbeatSocket(const HeartbeatSocket&) = delete;
  HeartbeatSocket& operator=(const HeartbeatSocket&) = delete;

  /// To every address that rank `to` has; a message that cannot leave is dropped.
  void send(Heartbeat beat, int to) const;
  /// The next message of this job that has arrived, if any.
  std::optional<Heartbeat> receive() const;
  /// Until something arrives, wake() is called, or so many seconds are over.
  void wait(double seconds) const;
  /// Ends wait(); from any thread.
  void wake() const;

  const std::string& host(int rank) const { return peers_[static_cast<size_t>(rank)].host; }

 private:
  struct Address {
    uint32_t ip = 0;  // both in network order
    uint16_t port = 0;
  };
  struct Peer {
    std::string host;
    std::vector<Address> addresses;
  };

  int socket_ = -1;
  int wake_ = -1;
  uint64_t job_ = 0;
  std::vector<Peer> peers_;  // by rank
};

}  // namespace selfcal
