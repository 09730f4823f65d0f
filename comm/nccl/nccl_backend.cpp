#include "comm/nccl/nccl_backend.hpp"

#include <algorithm>
#include <cstdlib>
#include <cstring>

#include "base/error.hpp"

namespace selfcal {
namespace {

using Status = NcclCalls::Status;

/// Calls post(address, bytes) for the pieces of a buffer in turn, until one fails. An empty buffer
/// has none. The group that the pieces are in tells when they have started.
template <class Post>
Status post_pieces(const DeviceBuffer& buffer, int64_t piece, Post post) {
  auto* data = static_cast<std::byte*>(buffer.data);
  for (int64_t offset = 0; offset < buffer.bytes; offset += piece) {
    const Status status = post(data + offset, std::min(piece, buffer.bytes - offset));
    if (status == Status::failed) return status;
  }
  return Status::success;
}

}  // namespace

NcclBackend::NcclBackend(std::shared_ptr<Backend> host, std::shared_ptr<NcclCalls> calls,
                         const NcclOptions& options)
    : Backend(host->activity()),
      host_(std::move(host)),
      calls_(std::move(calls)),
      options_(options) {
  const NcclCalls::UniqueId id = shared_id();
  group_ = std::make_shared<NcclGroup>(calls_, options_, size(), id, rank());
}

/// Rank 0's id, or its error, on all ranks.
NcclCalls::UniqueId NcclBackend::shared_id() {
  struct {
    NcclCalls::UniqueId id{};
    char error[256] = {};
  } message;
  if (rank() == 0 && calls_->unique_id(message.id) == Status::failed)
    std::strncpy(message.error, calls_->error_text().c_str(), sizeof message.error - 1);
  host_->broadcast(std::as_writable_bytes(std::span(&message, 1)), 0);
  if (message.error[0] != '\0')
    fail(ExitCode::internal, "NCCL: rank 0 of {} gave no unique id: {}", size(), message.error);
  return message.id;
}

std::shared_ptr<Communicator::Backend> NcclBackend::split(int color) {
  return std::make_shared<NcclBackend>(host_->split(color), calls_, options_);
}

void NcclBackend::abort(int code) {
  host_->abort(code);
  std::_Exit(code);
}

void NcclBackend::check_rank(int rank, const char* call) const {
  if (rank < 0 || rank >= size())
    fail(ExitCode::internal, "{} names rank {} of a communicator of {}", call, rank, size());
}

Request NcclBackend::broadcast(const DeviceBuffer& data, int root) {
  check_rank(root, "broadcast");
  if (data.bytes == 0) return Request();
  return group_->run(fmt::format("broadcast of {} bytes from rank {}", data.bytes, root),
                     {&data, 1}, [&](auto handle, auto stream) {
                       return post_pieces(
                           data, options_.chunk_bytes, [&](std::byte* at, int64_t bytes) {
                             return calls_->broadcast(at, bytes, root, handle, stream);
                           });
                     });
}

Request NcclBackend::all_reduce(const DeviceBuffer& data, Element element, ReduceOp op) {
  const bool wide = element == Element::int64;
  const int64_t width = wide ? 8 : 4;
  const auto type = wide ? NcclCalls::Type::int64 : NcclCalls::Type::int32;
  if (data.bytes % width != 0)
    fail(ExitCode::internal, "all_reduce of {} bytes, expected a multiple of {}", data.bytes,
         width);
  if (data.bytes == 0) return Request();
  return group_->run(
      fmt::format("all_reduce of {} bytes", data.bytes), {&data, 1}, [&](auto handle, auto stream) {
        return post_pieces(data, std::max(width, options_.chunk_bytes / width * width),
                           [&](std::byte* at, int64_t bytes) {
                             return calls_->all_reduce(at, bytes / width, type, op, handle, stream);
                           });
      });
}

Request NcclBackend::exchange(std::span<const DeviceMessage> messages) {
  std::vector<DeviceBuffer> buffers;
  int64_t sent = 0, received = 0;
  for (const auto& [kind, peer, buffer] : messages) {
    check_rank(peer, "exchange");
    if (buffer.bytes == 0) continue;
    (kind == DeviceMessage::Kind::send ? sent : received) += buffer.bytes;
    buffers.push_back(buffer);
  }
  if (buffers.empty()) return Request();
  const auto what = fmt::format("exchange of {} messages ({} bytes out, {} bytes in)",
                                buffers.size(), sent, received);
  return group_->run(what, buffers, [&](auto handle, auto stream) {
    for (const DeviceMessage& message : messages) {
      const auto post = [&](std::byte* at, int64_t bytes) {
        return message.kind == DeviceMessage::Kind::send
                   ? calls_->send(at, bytes, message.peer, handle, stream)
                   : calls_->receive(at, bytes, message.peer, handle, stream);
      };
      if (post_pieces(message.buffer, options_.chunk_bytes, post) == Status::failed)
        return Status::failed;
    }
    return Status::success;
  });
}

}  // namespace selfcal
