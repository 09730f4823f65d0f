// A double of NCCL and of CUDA's streams on host memory. Bytes travel by MPI; streams run when
// somebody asks how far they are. It keeps the calls in order, notes what the libraries would not
// have allowed, and fails on request.
#pragma once
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "comm/device_memory.hpp"
#include "comm/nccl/nccl_calls.hpp"

namespace selfcal::testing_support {

/// Made and destroyed by all ranks of the world.
class NcclDouble : public NcclCalls, public DeviceMemory {
 public:
  NcclDouble();
  ~NcclDouble() override;

  // How it behaves
  int devices = 8;
  std::function<std::string(int)> bus_of = [](int device) {
    return "0000:0" + std::to_string(device) + ":00.0";
  };
  int polls_in_progress = 3;  // a started call is in progress for that many polls
  bool init_hangs = false;    // communicators are never ready
  bool stalled = false;       // nothing moves on any stream
  std::string asynchronous;   // an error that async_error() finds from now on
  std::string failing_call;   // the call of this name fails

  // What happened
  std::vector<std::string> calls;
  std::vector<std::string> violations;

  /// Queues `work` on a stream; it runs when the stream has been polled `polls` times.
  void launch(Stream stream, int polls, std::function<void()> work);

  std::string error_text() override { return error_; }
  int device_count() override { return devices; }
  std::string device_name(int) override { return "double"; }
  std::string bus_id(int device) override { return bus_of(device); }
  Status set_device(int device) override;
  Status create_stream(Stream& stream) override;
  void destroy_stream(Stream stream) override;
  Status create_event(Event& event) override;
  void destroy_event(Event event) override;
  Status record(Event event, Stream stream) override;
  Status wait(Stream stream, Event event) override;
  Status query(Event event) override;

  Status unique_id(UniqueId& id) override;
  Status init(Handle& handle, int ranks, const UniqueId& id, int rank) override;
  Status async_error(Handle handle) override;
  Status group_start() override;
  Status group_end() override;
  Status send(const void* data, int64_t bytes, int peer, Handle handle, Stream stream) override;
  Status receive(void* data, int64_t bytes, int peer, Handle handle, Stream stream) override;
  Status broadcast(void* data, int64_t bytes, int root, Handle handle, Stream stream) override;
  Status all_reduce(void* data, int64_t count, Type type, ReduceOp op, Handle handle,
                    Stream stream) override;
  Status finalize(Handle handle) override;
  Status destroy(Handle handle) override;
  Status abort(Handle handle) override;

  void* allocate(int64_t bytes) override { return ::operator new(static_cast<size_t>(bytes)); }
  void release(void* memory) override { ::operator delete(memory); }
  void upload(void* memory, const void* host, int64_t bytes) override;
  void download(void* host, const void* memory, int64_t bytes) override;
  void* current_stream(int) override { return nullptr; }

 private:
  /// Something on a stream; true when it is done.
  using Task = std::function<bool()>;
  /// A call of NCCL, as a message of MPI that is yet to be posted.
  using Post = std::function<MPI_Request()>;
  struct Queue {
    std::deque<Task> tasks;
    int64_t queued = 0, passed = 0;
  };
  struct Mark {
    Stream stream = nullptr;
    int64_t place = 0;
  };
  struct Ranks;

  void push(Stream stream, Task task);
  bool passed(const Mark& mark);
  void move();
  Status note(const std::string& name, const std::string& text);
  Status post(const std::string& name, const std::string& text, Handle handle, Stream stream,
              Post post);
  Ranks* usable(Handle handle, const std::string& name);

  MPI_Comm world_ = MPI_COMM_NULL;
  int device_ = -1;
  std::vector<MPI_Comm> retired_;
  int ids_ = 0;
  std::string error_ = "no error";
  std::map<Stream, Queue> streams_;
  std::map<Event, std::unique_ptr<Mark>> events_;
  std::map<Handle, std::unique_ptr<Ranks>> communicators_;
  int streams_made_ = 0;
  bool in_group_ = false;
  Ranks* group_of_ = nullptr;
  Stream group_stream_ = nullptr;
  std::vector<Post> group_;
};

}  // namespace selfcal::testing_support
