// Messages that leave while their sender works on.
#pragma once
#include <cstddef>
#include <deque>
#include <vector>

#include "comm/communicator.hpp"

namespace selfcal {

class Outbox {
 public:
  /// Any number of messages may be on their way: for words of a few bytes.
  explicit Outbox(const Communicator& ranks) : ranks_(ranks) {}
  /// At most `limit` messages (at least 1) that the receivers have not taken: where there are as
  /// many, send() waits. That bounds what is held here and at the receivers together.
  Outbox(const Communicator& ranks, size_t limit) : ranks_(ranks), limit_(limit) {}

  void send(std::vector<std::byte> message, int to, int tag);
  /// Waits until all have left; with a limit, until all are taken.
  void finish();
  /// Messages held here.
  size_t in_flight();

 private:
  struct Parcel {
    std::vector<std::byte> message;
    Request request;
  };
  const Communicator& ranks_;
  size_t limit_ = 0;            // 0: none
  std::deque<Parcel> parcels_;  // stable addresses: MPI reads the bytes until a request is done
};

}  // namespace selfcal
