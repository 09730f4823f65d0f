// One rank alone. Messages to itself are matched by tag in the order sent.
#pragma once
#include <deque>
#include <map>

#include "comm/communicator.hpp"

namespace selfcal {

class LocalBackend : public Communicator::Backend {
 public:
  using Backend::all_reduce;
  using Backend::broadcast;

  int rank() const override { return 0; }
  int size() const override { return 1; }
  int world_rank() const override { return 0; }
  std::shared_ptr<Backend> split(int) override { return std::make_shared<LocalBackend>(); }
  void barrier() override {}
  void broadcast(std::span<std::byte>, int) override {}
  Request begin_broadcast(std::span<std::byte>, int) override { return Request(); }
  void all_reduce(void*, int64_t, Element, ReduceOp) override {}
  void all_gather(std::span<const std::span<std::byte>>) override {}
  Request send(std::span<const std::byte> data, int to, int tag) override;
  Request receive(std::span<std::byte> into, int from, int tag) override;
  std::optional<Envelope> probe(int tag) override;
  void drop_messages(const std::function<bool()>&) override { mailbox_->clear(); }
  [[noreturn]] void abort(int code) override;
  MPI_Comm mpi() override { return MPI_COMM_NULL; }

 private:
  using Mailbox = std::map<int, std::deque<std::vector<std::byte>>>;
  std::shared_ptr<Mailbox> mailbox_ = std::make_shared<Mailbox>();
};

}  // namespace selfcal
