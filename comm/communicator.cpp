#include "comm/communicator.hpp"

#include <sched.h>

#include <cstdlib>
#include <thread>

#include "base/error.hpp"
#include "comm/local/local_backend.hpp"
#include "comm/mpi/mpi_backend.hpp"
#include "comm/nccl/nccl_backend.hpp"

namespace selfcal {
namespace {

[[noreturn]] void fail_without_nccl(const char* call) {
  fail(ExitCode::internal, "{} of device memory: this communicator has no NCCL", call);
}

}  // namespace

void wait_until(const std::function<bool()>& ready, std::chrono::microseconds patience) {
  using clock = std::chrono::steady_clock;
  const auto yielding_until = clock::now() + patience;
  while (!ready()) {
    if (clock::now() < yielding_until)
      sched_yield();
    else
      std::this_thread::sleep_for(std::chrono::microseconds(100));
  }
}

void wait_until(Activity& activity, const Wait& wait, const std::function<bool()>& ready,
                std::chrono::microseconds patience) {
  if (ready()) return;
  const Activity::Waiting waiting(activity, wait);
  wait_until(
      [&] {
        activity.wait_step();
        return ready();
      },
      patience);
}

void Request::give_up() {
  if (operation_ && !operation_->test()) operation_->give_up();
  operation_.reset();
}

bool Request::done() {
  if (operation_ && operation_->test()) operation_.reset();
  return operation_ == nullptr;
}

void Request::wait() {
  const auto is_done = [this] { return done(); };
  const auto patience = operation_ ? operation_->patience() : usual_patience;
  if (activity_)
    wait_until(*activity_, wait_, is_done, patience);
  else
    wait_until(is_done, patience);
}

Communicator Communicator::local() { return Communicator(std::make_shared<LocalBackend>()); }
Communicator Communicator::world() { return Communicator(MpiBackend::world()); }
Communicator Communicator::nccl(const Communicator& ranks, std::shared_ptr<NcclCalls> calls,
                                const NcclOptions& options) {
  return Communicator(std::make_shared<NcclBackend>(ranks.backend_, std::move(calls), options));
}

int Communicator::rank() const { return backend_->rank(); }
int Communicator::size() const { return backend_->size(); }
int Communicator::world_rank() const { return backend_->world_rank(); }
Communicator Communicator::split(int color) const { return Communicator(backend_->split(color)); }
void Communicator::barrier() const { backend_->barrier(); }
void Communicator::broadcast(std::span<std::byte> data, int root) const {
  if (rank() == root && size() > 1) activity().count_sent(data.size());
  backend_->broadcast(data, root);
}

Request Communicator::begin_broadcast(std::span<std::byte> data, int root) const {
  if (rank() == root && size() > 1) activity().count_sent(data.size());
  return watched(backend_->begin_broadcast(data, root), "broadcast", root, Wait::none);
}

void Communicator::all_reduce(std::span<int64_t> data, ReduceOp op) const {
  if (size() > 1) activity().count_sent(data.size_bytes());
  backend_->all_reduce(data.data(), static_cast<int64_t>(data.size()), Element::int64, op);
}

void Communicator::all_reduce(std::span<int32_t> data, ReduceOp op) const {
  if (size() > 1) activity().count_sent(data.size_bytes());
  backend_->all_reduce(data.data(), static_cast<int64_t>(data.size()), Element::int32, op);
}

void Communicator::all_gather(std::span<const std::span<std::byte>> parts) const {
  if (size() > 1) activity().count_sent(parts[static_cast<size_t>(rank())].size());
  backend_->all_gather(parts);
}

std::vector<std::vector<std::byte>> Communicator::all_gather(
    std::span<const std::byte> data) const {
  const auto mine = static_cast<size_t>(rank());
  std::vector<int64_t> sizes(static_cast<size_t>(size()));
  sizes[mine] = static_cast<int64_t>(data.size());
  all_reduce(std::span(sizes), ReduceOp::sum);
  std::vector<std::vector<std::byte>> messages(sizes.size());
  for (size_t other = 0; other < sizes.size(); ++other)
    messages[other].resize(static_cast<size_t>(sizes[other]));
  std::ranges::copy(data, messages[mine].begin());
  const std::vector<std::span<std::byte>> parts(messages.begin(), messages.end());
  all_gather(parts);
  return messages;
}

Request Communicator::watched(Request request, const char* what, int peer, int tag) const {
  return Request(std::move(request), backend_->activity(),
                 {what, peer < 0 ? peer : backend_->world_rank_of(peer), tag});
}

Request Communicator::send(std::span<const std::byte> data, int to, int tag) const {
  return watched(backend_->send(data, to, tag), "send", to, tag);
}

Request Communicator::send_until_taken(std::span<const std::byte> data, int to, int tag) const {
  return watched(backend_->send_until_taken(data, to, tag), "send", to, tag);
}

Request Communicator::receive(std::span<std::byte> into, int from, int tag) const {
  return watched(backend_->receive(into, from, tag), "receive", from, tag);
}

std::optional<Envelope> Communicator::probe(int tag) const { return backend_->probe(tag); }
void Communicator::drop_messages(const std::function<bool()>& all_sent) const {
  backend_->drop_messages(all_sent);
}

void Communicator::wait_until(const Wait& wait, const std::function<bool()>& ready) const {
  selfcal::wait_until(activity(), wait, ready);
}

Activity& Communicator::activity() const { return *backend_->activity(); }

bool Communicator::moves_device_memory() const { return backend_->moves_device_memory(); }

Request Communicator::broadcast(const DeviceBuffer& data, int root) const {
  if (rank() == root && size() > 1) activity().count_sent(static_cast<size_t>(data.bytes));
  return watched(backend_->broadcast(data, root), "broadcast by NCCL", root, Wait::none);
}

Request Communicator::all_reduce(const DeviceBuffer& data, Element element, ReduceOp op) const {
  if (size() > 1) activity().count_sent(static_cast<size_t>(data.bytes));
  return watched(backend_->all_reduce(data, element, op), "all_reduce by NCCL", Wait::all,
                 Wait::none);
}

Request Communicator::exchange(std::span<const DeviceMessage> messages) const {
  for (const DeviceMessage& message : messages) {
    if (message.kind == DeviceMessage::Kind::send)
      activity().count_sent(static_cast<size_t>(message.buffer.bytes));
  }
  return watched(backend_->exchange(messages), "exchange by NCCL", Wait::all, Wait::none);
}

Request Communicator::Backend::broadcast(const DeviceBuffer&, int) {
  fail_without_nccl("broadcast");
}
Request Communicator::Backend::all_reduce(const DeviceBuffer&, Element, ReduceOp) {
  fail_without_nccl("all_reduce");
}
Request Communicator::Backend::exchange(std::span<const DeviceMessage>) {
  fail_without_nccl("exchange");
}

void Communicator::abort(int code) const {
  backend_->abort(code);
  std::_Exit(code);  // for the compiler, which takes a virtual call to return
}
MPI_Comm Communicator::mpi() const { return backend_->mpi(); }

}  // namespace selfcal
