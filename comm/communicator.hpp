// Ranks that work together. One value handle over a backend (mpi/, local/, nccl/), picked when it
// is made. Host memory travels by MPI; device memory by NCCL, where the communicator was made with
// it.
//
// Every wait polls with back-off instead of spinning, because ranks may share cores. Messages of
// any length are sent in chunks below 2^31 bytes. Calls marked collective must be made by every
// rank of the communicator, in the same order.
#pragma once
#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include <mpi.h>

#include "comm/activity.hpp"
#include "comm/device_buffer.hpp"

namespace selfcal {

class NcclCalls;
struct NcclOptions;

enum class ReduceOp { sum, max, min };
enum class Element { int32, int64 };

/// Most waits inside a team are short, and a woken sleeper is late; a long wait must leave its core
/// to others.
inline constexpr std::chrono::microseconds usual_patience{1000};

/// A message or collective in flight. Its buffer must live until wait() returns or done() is true.
/// Destroying an unfinished one gives it up: only right when the job is about to end.
class Request {
 public:
  class Operation {
   public:
    virtual ~Operation() = default;
    virtual bool test() = 0;
    /// Of a receive: none of the buffer is written to afterwards.
    virtual void give_up() {}
    /// For how long a wait for it stays awake.
    virtual std::chrono::microseconds patience() const { return usual_patience; }
  };

  Request() = default;
  explicit Request(std::unique_ptr<Operation> operation) : operation_(std::move(operation)) {}
  /// The same; what a wait for it is called, and where it is noted.
  Request(Request request, std::shared_ptr<Activity> activity, const Wait& wait)
      : operation_(std::move(request.operation_)), activity_(std::move(activity)), wait_(wait) {}
  Request(Request&&) = default;
  Request& operator=(Request&&) = default;

  bool done();
  void wait();
  /// Of a receive that nobody sends for any more, or that has almost arrived: its buffer is free
  /// afterwards.
  void give_up();

 private:
  std::unique_ptr<Operation> operation_;
  std::shared_ptr<Activity> activity_;
  Wait wait_;
};

/// A message that waits to be received.
struct Envelope {
  int source = 0;
  int tag = 0;
  int64_t bytes = 0;
};

class Communicator {
 public:
  class Backend;

  /// One rank alone: no MPI needed.
  static Communicator local();
  /// All ranks of an initialised MPI. Borrows MPI_COMM_WORLD through a duplicate of its own.
  static Communicator world();
  /// Collective. The same ranks; their device memory travels by an NCCL communicator of its own.
  /// `calls`: of the GPU module; options.device: of this rank (nccl/device_binding.hpp).
  static Communicator nccl(const Communicator& ranks, std::shared_ptr<NcclCalls> calls,
                           const NcclOptions& options);

  int rank() const;
  int size() const;
  /// This rank's number in the whole job, for messages to people.
  int world_rank() const;

  /// Collective. Ranks of equal color form a communicator, ordered by rank; over NCCL if this one
  /// is.
  Communicator split(int color) const;
  /// Collective.
  void barrier() const;
  /// Collective: root's bytes to all.
  void broadcast(std::span<std::byte> data, int root) const;
  /// Collective: the same, while the ranks work on and enter other collectives. They move it along
  /// whenever they wait. It must be waited for, on all ranks: it cannot be given up.
  Request begin_broadcast(std::span<std::byte> data, int root) const;
  /// Collective, in place; exact for integers.
  void all_reduce(std::span<int64_t> data, ReduceOp op) const;
  void all_reduce(std::span<int32_t> data, ReduceOp op) const;
  /// Collective, in place: parts[r], which rank r has filled, to all. Every rank knows all lengths.
  void all_gather(std::span<const std::span<std::byte>> parts) const;
  /// Collective: every rank's bytes (of any length) to all ranks, in rank order.
  std::vector<std::vector<std::byte>> all_gather(std::span<const std::byte> data) const;

  /// Point to point; the receiver knows the length, or learns it by probe.
  Request send(std::span<const std::byte> data, int to, int tag) const;
  /// The same, but done only when the receiver takes the message: who bounds how many of these are
  /// in flight bounds the receiver's memory as well.
  Request send_until_taken(std::span<const std::byte> data, int to, int tag) const;
  Request receive(std::span<std::byte> into, int from, int tag) const;
  /// The next message with `tag` from anyone, if one has arrived.
  std::optional<Envelope> probe(int tag) const;
  /// Collective, for an end before the work is done: takes and drops what was sent and is not
  /// received, until all_sent() is true on every rank (which asks its own sends). Receives that are
  /// open take theirs meanwhile, and may be given up afterwards.
  void drop_messages(const std::function<bool()>& all_sent) const;

  /// Polls with back-off until ready(); the watchdog knows meanwhile what this rank waits for.
  void wait_until(const Wait& wait, const std::function<bool()>& ready) const;
  /// What this rank does: shared by all communicators that come from one.
  Activity& activity() const;

  /// Whether the calls below work: the communicator is over NCCL.
  bool moves_device_memory() const;

  // Device memory (ExitCode::internal where the communicator is not over NCCL). Calls return when
  // the work is queued; the Request is done when the device is. They must be made in the same order
  // by all ranks that take part.

  /// Collective: root's bytes to all.
  Request broadcast(const DeviceBuffer& data, int root) const;
  /// Collective, in place, of int32 or int64.
  Request all_reduce(const DeviceBuffer& data, Element element, ReduceOp op) const;
  /// Sends and receives as one group: none waits for another of the group. Between two ranks the
  /// n-th send meets the n-th receive (there are no tags), and both know the length. What flows in
  /// both directions at once must be one exchange.
  Request exchange(std::span<const DeviceMessage> messages) const;

  /// Ends the whole job at once with this exit code.
  [[noreturn]] void abort(int code) const;

  /// For libraries that take an MPI communicator (parallel HDF5).
  MPI_Comm mpi() const;

 private:
  explicit Communicator(std::shared_ptr<Backend> backend) : backend_(std::move(backend)) {}
  Request watched(Request request, const char* what, int peer, int tag) const;
  std::shared_ptr<Backend> backend_;
};

/// What a backend does; one folder each.
class Communicator::Backend {
 public:
  explicit Backend(std::shared_ptr<Activity> activity = std::make_shared<Activity>())
      : activity_(std::move(activity)) {}
  virtual ~Backend() = default;
  const std::shared_ptr<Activity>& activity() const { return activity_; }
  virtual int rank() const = 0;
  virtual int size() const = 0;
  virtual int world_rank() const = 0;
  /// The number in the whole job of a rank of this communicator.
  virtual int world_rank_of(int rank) const { return rank; }
  virtual std::shared_ptr<Backend> split(int color) = 0;
  virtual void barrier() = 0;
  virtual void broadcast(std::span<std::byte> data, int root) = 0;
  virtual Request begin_broadcast(std::span<std::byte> data, int root) = 0;
  virtual void all_reduce(void* data, int64_t count, Element element, ReduceOp op) = 0;
  virtual void all_gather(std::span<const std::span<std::byte>> parts) = 0;
  virtual Request send(std::span<const std::byte> data, int to, int tag) = 0;
  virtual Request send_until_taken(std::span<const std::byte> data, int to, int tag) {
    return send(data, to, tag);
  }
  virtual Request receive(std::span<std::byte> into, int from, int tag) = 0;
  virtual std::optional<Envelope> probe(int tag) = 0;
  virtual void drop_messages(const std::function<bool()>& all_sent) = 0;
  // Of host memory alone unless a backend says otherwise.
  virtual bool moves_device_memory() const { return false; }
  virtual Request broadcast(const DeviceBuffer& data, int root);
  virtual Request all_reduce(const DeviceBuffer& data, Element element, ReduceOp op);
  virtual Request exchange(std::span<const DeviceMessage> messages);
  [[noreturn]] virtual void abort(int code) = 0;
  virtual MPI_Comm mpi() = 0;

 private:
  std::shared_ptr<Activity> activity_;
};

/// Calls ready() until it is true: at once, then yielding for as long as `patience`, then sleeping
/// a little between calls.
void wait_until(const std::function<bool()>& ready,
                std::chrono::microseconds patience = usual_patience);
/// The same, noted as a wait unless it is over at once.
void wait_until(Activity& activity, const Wait& wait, const std::function<bool()>& ready,
                std::chrono::microseconds patience = usual_patience);

}  // namespace selfcal
