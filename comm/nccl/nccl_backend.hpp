// Ranks with a GPU each. Device memory travels by NCCL, everything else by the host backend
// underneath (MPI), which NCCL is also bootstrapped over.
//
// Ends: an error or a wait longer than the timeout aborts the NCCL communicator and is an Error of
// one line on the rank that met it; its peers meet theirs in turn. After that the backend's device
// calls fail with the same line.
#pragma once
#include "comm/nccl/nccl_group.hpp"

namespace selfcal {

class NcclBackend : public Communicator::Backend {
 public:
  /// Collective over `host`.
  NcclBackend(std::shared_ptr<Backend> host, std::shared_ptr<NcclCalls> calls,
              const NcclOptions& options);

  int rank() const override { return host_->rank(); }
  int size() const override { return host_->size(); }
  int world_rank() const override { return host_->world_rank(); }
  int world_rank_of(int rank) const override { return host_->world_rank_of(rank); }
  std::shared_ptr<Backend> split(int color) override;
  void barrier() override { host_->barrier(); }
  void broadcast(std::span<std::byte> data, int root) override { host_->broadcast(data, root); }
  Request begin_broadcast(std::span<std::byte> data, int root) override {
    return host_->begin_broadcast(data, root);
  }
  void all_reduce(void* data, int64_t count, Element element, ReduceOp op) override {
    host_->all_reduce(data, count, element, op);
  }
  void all_gather(std::span<const std::span<std::byte>> parts) override {
    host_->all_gather(parts);
  }
  Request send(std::span<const std::byte> data, int to, int tag) override {
    return host_->send(data, to, tag);
  }
  Request send_until_taken(std::span<const std::byte> data, int to, int tag) override {
    return host_->send_until_taken(data, to, tag);
  }
  Request receive(std::span<std::byte> into, int from, int tag) override {
    return host_->receive(into, from, tag);
  }
  std::optional<Envelope> probe(int tag) override { return host_->probe(tag); }
  void drop_messages(const std::function<bool()>& all_sent) override {
    host_->drop_messages(all_sent);
  }
  bool moves_device_memory() const override { return true; }
  Request broadcast(const DeviceBuffer& data, int root) override;
  Request all_reduce(const DeviceBuffer& data, Element element, ReduceOp op) override;
  Request exchange(std::span<const DeviceMessage> messages) override;
  [[noreturn]] void abort(int code) override;
  MPI_Comm mpi() override { return host_->mpi(); }

 private:
  NcclCalls::UniqueId shared_id();
  void check_rank(int rank, const char* call) const;

  std::shared_ptr<Backend> host_;
  std::shared_ptr<NcclCalls> calls_;
  NcclOptions options_;
  std::shared_ptr<NcclGroup> group_;
};

}  // namespace selfcal
