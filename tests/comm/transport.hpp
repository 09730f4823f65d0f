// The ways that bytes travel between ranks, as the conformance suite sees them: from host vectors
// to host vectors, by host memory or through the memory of a GPU.
#pragma once
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "comm/communicator.hpp"

namespace selfcal::testing_support {

class Transport {
 public:
  using Bytes = std::vector<std::byte>;
  struct Message {
    DeviceMessage::Kind kind;
    int peer;
    Bytes data;  // that is sent, or of the length that is received
  };

  virtual ~Transport() = default;
  virtual const Communicator& ranks() const = 0;
  virtual void broadcast(Bytes& data, int root) = 0;
  virtual void all_reduce(Bytes& data, Element element, ReduceOp op) = 0;
  /// All at once; fills what is received.
  virtual void exchange(std::vector<Message>& messages) = 0;
  /// Collective.
  virtual std::unique_ptr<Transport> split(int color) = 0;
  /// What was done that NCCL does not allow, as far as anybody looks.
  virtual std::vector<std::string> violations() const { return {}; }
};

/// Pieces that NCCL's messages are cut into here.
inline constexpr int64_t test_chunk_bytes = 1000;

struct TransportOrReason {
  std::unique_ptr<Transport> transport;
  std::string reason;  // why there is none
};

/// "local", "mpi", "nccl_double" or "nccl". Collective.
TransportOrReason make_transport(const std::string& name);

}  // namespace selfcal::testing_support
