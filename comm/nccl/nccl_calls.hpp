// The vendor's calls that the NCCL backend makes, and nothing more: of NCCL, and the streams and
// events of CUDA. The GPU module implements them by the real libraries, the tests by a double on
// host memory. No vendor header is needed on this side.
#pragma once
#include <array>
#include <cstddef>
#include <cstdint>
#include <string>

#include "comm/communicator.hpp"

namespace selfcal {

class NcclCalls {
 public:
  using Handle = void*;  // ncclComm_t
  using Stream = void*;  // cudaStream_t
  using Event = void*;   // cudaEvent_t
  using UniqueId = std::array<char, 128>;

  /// in_progress: the call goes on by itself; the communicator takes no other call before
  /// async_error() says how it ended.
  enum class Status { success, in_progress, failed };
  enum class Type { byte, int32, int64 };

  virtual ~NcclCalls() = default;

  /// What the last call of this thread that failed said.
  virtual std::string error_text() = 0;

  // CUDA
  virtual int device_count() = 0;
  virtual std::string device_name(int device) = 0;
  /// PCI address, which tells the devices of a host apart whatever numbers they go by.
  virtual std::string bus_id(int device) = 0;
  virtual Status set_device(int device) = 0;
  /// A stream of the current device beside those that compute.
  virtual Status create_stream(Stream& stream) = 0;
  virtual void destroy_stream(Stream stream) = 0;
  virtual Status create_event(Event& event) = 0;
  virtual void destroy_event(Event event) = 0;
  virtual Status record(Event event, Stream stream) = 0;
  /// What is queued on `stream` from now on waits for the event.
  virtual Status wait(Stream stream, Event event) = 0;
  /// in_progress until the stream has passed the event.
  virtual Status query(Event event) = 0;

  // NCCL; communicators are made non-blocking
  virtual Status unique_id(UniqueId& id) = 0;
  virtual Status init(Handle& handle, int ranks, const UniqueId& id, int rank) = 0;
  virtual Status async_error(Handle handle) = 0;
  virtual Status group_start() = 0;
  virtual Status group_end() = 0;
  virtual Status send(const void* data, int64_t bytes, int peer, Handle handle, Stream stream) = 0;
  virtual Status receive(void* data, int64_t bytes, int peer, Handle handle, Stream stream) = 0;
  virtual Status broadcast(void* data, int64_t bytes, int root, Handle handle, Stream stream) = 0;
  virtual Status all_reduce(void* data, int64_t count, Type type, ReduceOp op, Handle handle,
                            Stream stream) = 0;
  virtual Status finalize(Handle handle) = 0;
  virtual Status destroy(Handle handle) = 0;
  /// Ends what runs on the device, and frees the handle.
  virtual Status abort(Handle handle) = 0;
};

}  // namespace selfcal
