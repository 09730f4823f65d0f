// The MPI backend. Collectives are the non-blocking ones, waited for with back-off.
#pragma once
#include "comm/communicator.hpp"

namespace selfcal {

/// Ranks that a launcher says it has started, the most where one stands in another (mpirun within a
/// step of one rank); 0 without one, and with one that does not say. Needs no MPI.
int counted_ranks();

/// Whether this is certainly the only rank: it can do without MPI, which takes a quarter of a
/// second to start. Needs no MPI.
bool is_alone();

/// MPI_Init_thread (funneled) and MPI_Finalize as one object. A launcher that started more ranks
/// than MPI sees (srun with the wrong --mpi=) is ExitCode::usage.
class MpiSession {
 public:
  MpiSession();
  ~MpiSession();
  MpiSession(const MpiSession&) = delete;
  MpiSession& operator=(const MpiSession&) = delete;
};

class MpiBackend : public Communicator::Backend {
 public:
  using Backend::all_reduce;
  using Backend::broadcast;

  static std::shared_ptr<MpiBackend> world();
  /// Owns `handle`.
  MpiBackend(MPI_Comm handle, std::shared_ptr<Activity> activity);
  ~MpiBackend() override;

  int rank() const override { return rank_; }
  int size() const override { return size_; }
  int world_rank() const override { return world_rank_of(rank_); }
  int world_rank_of(int rank) const override { return world_ranks_[static_cast<size_t>(rank)]; }
  std::shared_ptr<Backend> split(int color) override;
  void barrier() override;
  void broadcast(std::span<std::byte> data, int root) override;
  Request begin_broadcast(std::span<std::byte> data, int root) override;
  void all_reduce(void* data, int64_t count, Element element, ReduceOp op) override;
  void all_gather(std::span<const std::span<std::byte>> parts) override;
  Request send(std::span<const std::byte> data, int to, int tag) override;
  Request send_until_taken(std::span<const std::byte> data, int to, int tag) override;
  Request receive(std::span<std::byte> into, int from, int tag) override;
  std::optional<Envelope> probe(int tag) override;
  void drop_messages(const std::function<bool()>& all_sent) override;
  [[noreturn]] void abort(int code) override;
  MPI_Comm mpi() override { return handle_; }

 private:
  void wait_for(MPI_Request& request, const char* what, int peer = Wait::all,
                std::chrono::microseconds patience = usual_patience);
  /// Waits for a message from or to rank `peer` of this communicator.
  void finish(Request& request, const char* what, int peer, std::chrono::microseconds patience);
  /// A large message moves in many pieces, and each one waits for a rank that sleeps. So all ranks
  /// meet first, which may take long, and then stay awake for as long as the bytes should take.
  /// Collective; returns that time.
  std::chrono::microseconds meet_for(int64_t bytes);
  /// Each rank has parts[whole] and sends to the next what it has got from the one before.
  void pass_round(std::span<const std::span<std::byte>> parts, int whole,
                  std::chrono::microseconds patience);
  /// Of chunks that are cut alike on all ranks: chunk rank + 1 of the sum, or what `operation`
  /// makes, on each.
  void reduce_scatter(std::span<const std::span<std::byte>> chunks, MPI_Datatype type,
                      MPI_Op operation, std::chrono::microseconds patience);
  int next() const { return (rank_ + 1) % size_; }
  int previous() const { return (rank_ + size_ - 1) % size_; }

  MPI_Comm handle_;
  int rank_ = 0, size_ = 1;
  std::vector<int> world_ranks_;
};

}  // namespace selfcal
