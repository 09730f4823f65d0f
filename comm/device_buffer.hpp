// Bytes in the memory of a GPU, as the communicator is given them.
#pragma once
#include <cstdint>

namespace selfcal {

/// A view. Work that was queued on `stream` (a cudaStream_t) before the view is handed over is
/// waited for, on the device; until the Request is done nobody else may touch the bytes.
struct DeviceBuffer {
  void* data = nullptr;
  int64_t bytes = 0;
  int device = 0;
  void* stream = nullptr;
};

/// One of the messages that a rank exchanges with others in one go.
struct DeviceMessage {
  enum class Kind { send, receive };
  Kind kind = Kind::send;
  int peer = 0;
  DeviceBuffer buffer;
};

}  // namespace selfcal
