// Memory of the current GPU, for callers that have no tensor library at hand.
#pragma once
#include <cstdint>

namespace selfcal {

/// Every call has finished when it returns; one that fails is an Error of ExitCode::internal.
class DeviceMemory {
 public:
  virtual ~DeviceMemory() = default;
  virtual void* allocate(int64_t bytes) = 0;
  virtual void release(void* memory) = 0;
  virtual void upload(void* memory, const void* host, int64_t bytes) = 0;
  virtual void download(void* host, const void* memory, int64_t bytes) = 0;
  /// The stream (cudaStream_t) that the tensor library queues its work on now.
  virtual void* current_stream(int device) = 0;
};

}  // namespace selfcal
