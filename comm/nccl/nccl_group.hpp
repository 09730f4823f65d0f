// One NCCL communicator and the stream that its work is queued on, from start to end: made
// non-blocking, polled for errors in every wait, aborted on the first error or when nothing comes
// for too long, so that no kernel spins on for a peer that is gone.
#pragma once
#include <chrono>
#include <functional>
#include <memory>
#include <span>
#include <string>

#include "comm/nccl/nccl_calls.hpp"

namespace selfcal {

struct NcclOptions {
  int device = 0;  // of this rank
  std::chrono::milliseconds timeout{300'000};
  /// Asked when a wait has lasted for `timeout`: whether the peers gave a sign of life since. Then
  /// another `timeout` is waited. Default: they did not. Where a Watchdog runs, which ends a job
  /// that is silent and knows slow ranks from silent ones, this is to be always true.
  std::function<bool()> peers_alive;
  int64_t chunk_bytes = int64_t{1} << 30;  // longest piece of a message; the same on all ranks
};

class NcclGroup : public std::enable_shared_from_this<NcclGroup> {
 public:
  using Status = NcclCalls::Status;

  /// Collective over the `ranks` that were given the same id.
  /// `activity`: where waits are noted.
  NcclGroup(std::shared_ptr<NcclCalls> calls, const NcclOptions& options,
            std::shared_ptr<Activity> activity, int ranks, const NcclCalls::UniqueId& id, int rank);
  /// Finalises and destroys the communicator; aborts it if work is unfinished.
  ~NcclGroup();
  NcclGroup(const NcclGroup&) = delete;
  NcclGroup& operator=(const NcclGroup&) = delete;

  /// Queues what post() calls as one group, behind what is queued on the buffers' streams. `what`:
  /// for messages to people. An error ends the communicator, and is ExitCode::internal here and in
  /// each later call.
  Request run(const std::string& what, std::span<const DeviceBuffer> buffers,
              const std::function<Status(NcclCalls::Handle, NcclCalls::Stream)>& post);

 private:
  class Event;
  class Deadline;
  struct Flight;
  class Pending;

  void create(int ranks, const NcclCalls::UniqueId& id, int rank);
  void queue_behind(const DeviceBuffer& buffer, const std::string& what);
  bool launched(Flight& flight);
  bool finished(Flight& flight);
  void settle();
  bool is_idle();
  bool close();
  void check(Status status, const std::string& what);
  void fail_if_late(Deadline& deadline, const std::string& what);
  void fail_if_broken() const;
  [[noreturn]] void break_off(const std::string& what, const std::string& why);
  void release() noexcept;

  std::shared_ptr<NcclCalls> calls_;
  NcclOptions options_;
  std::shared_ptr<Activity> activity_;
  std::string name_;    // of this rank, in messages
  std::string broken_;  // the error that ended the communicator
  NcclCalls::Handle handle_ = nullptr;
  NcclCalls::Stream stream_ = nullptr;
  std::shared_ptr<Flight> launching_;  // the group of calls that NCCL may still be starting
};

}  // namespace selfcal
