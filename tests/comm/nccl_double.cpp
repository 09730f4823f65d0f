#include "tests/comm/nccl_double.hpp"

#include <fmt/format.h>

#include <array>
#include <cstring>
#include <utility>

namespace selfcal::testing_support {

using Status = NcclCalls::Status;

struct NcclDouble::Ranks {
  MPI_Comm mpi = MPI_COMM_NULL;  // none while the communicator hangs
  int device = 0;
  int polls = 0;                    // that are still answered with in_progress
  std::function<void()> when_done;  // of the call in progress
  MPI_Request closing = MPI_REQUEST_NULL;
  bool finalized = false;
  std::vector<MPI_Request> requests;  // of the group that runs
};

NcclDouble::NcclDouble() { MPI_Comm_dup(MPI_COMM_WORLD, &world_); }

/// MPI's communicators are kept to here: a number that is used again while a peer still sends to
/// the one before confuses it.
NcclDouble::~NcclDouble() {
  MPI_Barrier(world_);
  for (MPI_Comm& communicator : retired_) MPI_Comm_free(&communicator);
  MPI_Comm_free(&world_);
}

Status NcclDouble::note(const std::string& name, const std::string& text) {
  calls.push_back(text.empty() ? name : name + " " + text);
  if (name != failing_call) return Status::success;
  error_ = name + " was told to fail";
  return Status::failed;
}

// Streams

Status NcclDouble::set_device(int device) {
  device_ = device;
  return Status::success;
}

Status NcclDouble::create_stream(Stream& stream) {
  stream = reinterpret_cast<Stream>(static_cast<intptr_t>(++streams_made_));
  streams_[stream];
  return note("create_stream", "");
}

void NcclDouble::destroy_stream(Stream stream) {
  streams_.erase(stream);
  note("destroy_stream", "");
}

Status NcclDouble::create_event(Event& event) {
  auto mark = std::make_unique<Mark>();
  event = mark.get();
  events_.emplace(event, std::move(mark));
  return Status::success;
}

void NcclDouble::destroy_event(Event event) {
  if (events_.erase(event) == 0) violations.push_back("an event is destroyed twice");
}

Status NcclDouble::record(Event event, Stream stream) {
  *events_.at(event) = {stream, streams_[stream].queued};
  return note("record", "");
}

Status NcclDouble::wait(Stream stream, Event event) {
  push(stream, [this, mark = *events_.at(event)] { return passed(mark); });
  return note("wait", "");
}

Status NcclDouble::query(Event event) {
  move();
  return passed(*events_.at(event)) ? Status::success : Status::in_progress;
}

void NcclDouble::launch(Stream stream, int polls, std::function<void()> work) {
  push(stream, [polls, work = std::move(work)]() mutable {
    if (polls-- > 0) return false;
    work();
    return true;
  });
}

void NcclDouble::push(Stream stream, Task task) {
  Queue& queue = streams_[stream];
  queue.tasks.push_back(std::move(task));
  ++queue.queued;
}

bool NcclDouble::passed(const Mark& mark) {
  const auto found = streams_.find(mark.stream);
  return found == streams_.end() || found->second.passed >= mark.place;
}

/// Every stream goes as far as it can.
void NcclDouble::move() {
  if (stalled) return;
  for (auto& [stream, queue] : streams_) {
    while (!queue.tasks.empty() && queue.tasks.front()()) {
      queue.tasks.pop_front();
      ++queue.passed;
    }
  }
}

// Communicators

Status NcclDouble::unique_id(UniqueId& id) {
  int rank = 0;
  MPI_Comm_rank(world_, &rank);
  const std::array<int, 2> words{rank, ++ids_};
  std::memcpy(id.data(), words.data(), sizeof words);
  return note("unique_id", "");
}

/// The bootstrap: all ranks tell the one that made the id who they are in the world, and learn it
/// of all.
Status NcclDouble::init(Handle& handle, int ranks, const UniqueId& id, int rank) {
  auto made = std::make_unique<Ranks>();
  made->device = device_;
  made->polls = polls_in_progress;
  handle = made.get();
  if (!init_hangs) {
    std::array<int, 2> words{};
    std::memcpy(words.data(), id.data(), sizeof words);
    const auto [root, tag] = words;
    int me = 0;
    MPI_Comm_rank(world_, &me);
    std::vector<int> members(static_cast<size_t>(ranks), me);
    if (rank == 0) {
      for (int other = 1; other < ranks; ++other) {
        std::array<int, 2> who{};
        MPI_Recv(who.data(), 2, MPI_INT, MPI_ANY_SOURCE, tag, world_, MPI_STATUS_IGNORE);
        members[static_cast<size_t>(who[0])] = who[1];
      }
      for (int other = 1; other < ranks; ++other)
        MPI_Send(members.data(), ranks, MPI_INT, members[static_cast<size_t>(other)], tag, world_);
    } else {
      const std::array<int, 2> who{rank, me};
      MPI_Send(who.data(), 2, MPI_INT, root, tag, world_);
      MPI_Recv(members.data(), ranks, MPI_INT, root, tag, world_, MPI_STATUS_IGNORE);
    }
    MPI_Group all = MPI_GROUP_NULL, some = MPI_GROUP_NULL;
    MPI_Comm_group(world_, &all);
    MPI_Group_incl(all, ranks, members.data(), &some);
    MPI_Comm_create_group(world_, some, tag, &made->mpi);
    MPI_Group_free(&some);
    MPI_Group_free(&all);
  }
  communicators_.emplace(handle, std::move(made));
  const Status status = note("init", fmt::format("{} of {}", rank, ranks));
  return status == Status::success ? Status::in_progress : status;
}

Status NcclDouble::async_error(Handle handle) {
  const auto found = communicators_.find(handle);
  if (found == communicators_.end()) {
    violations.push_back("async_error of a communicator that is gone");
    return Status::failed;
  }
  Ranks& ranks = *found->second;
  move();
  if (!asynchronous.empty()) {
    error_ = asynchronous;
    return Status::failed;
  }
  if (ranks.mpi == MPI_COMM_NULL) return Status::in_progress;
  if (ranks.polls > 0 && --ranks.polls > 0) return Status::in_progress;
  if (ranks.closing != MPI_REQUEST_NULL) {
    int closed = 0;
    MPI_Test(&ranks.closing, &closed, MPI_STATUS_IGNORE);
    if (!closed) return Status::in_progress;
    ranks.finalized = true;
  }
  if (ranks.when_done) std::exchange(ranks.when_done, nullptr)();
  return Status::success;
}

/// The communicator, if the library would take this call now.
NcclDouble::Ranks* NcclDouble::usable(Handle handle, const std::string& name) {
  const auto found = communicators_.find(handle);
  if (found == communicators_.end()) {
    violations.push_back(name + " of a communicator that is gone");
    return nullptr;
  }
  Ranks* ranks = found->second.get();
  if (ranks->polls > 0) violations.push_back(name + " while another call is in progress");
  if (ranks->device != device_) violations.push_back(name + " with another current device");
  return ranks;
}

Status NcclDouble::group_start() {
  if (in_group_) violations.push_back("group_start inside of a group");
  in_group_ = true;
  group_of_ = nullptr;
  return note("group_start", "");
}

Status NcclDouble::post(const std::string& name, const std::string& text, Handle handle,
                        Stream stream, Post post) {
  if (!in_group_) violations.push_back(name + " outside of a group");
  if (!streams_.contains(stream)) violations.push_back(name + " on a stream that is gone");
  group_of_ = usable(handle, name);
  group_stream_ = stream;
  const Status status = note(name, text);
  if (group_of_ != nullptr && status == Status::success) group_.push_back(std::move(post));
  return status;
}

/// What was posted gets on the stream only when the call is no longer in progress.
Status NcclDouble::group_end() {
  if (!in_group_) violations.push_back("group_end without a group");
  in_group_ = false;
  Ranks* ranks = group_of_;
  const Status status = note("group_end", "");
  if (status == Status::failed || ranks == nullptr) {
    group_.clear();
    return status;
  }
  ranks->polls = polls_in_progress;
  ranks->when_done = [this, ranks, stream = group_stream_, posts = std::move(group_)] {
    push(stream, [ranks, posts, started = false]() mutable {
      if (!started)
        for (const Post& post : posts) ranks->requests.push_back(post());
      started = true;
      int done = 0;
      MPI_Testall(static_cast<int>(ranks->requests.size()), ranks->requests.data(), &done,
                  MPI_STATUSES_IGNORE);
      if (done) ranks->requests.clear();
      return done != 0;
    });
  };
  group_.clear();
  if (polls_in_progress > 0) return Status::in_progress;
  std::exchange(ranks->when_done, nullptr)();
  return Status::success;
}

Status NcclDouble::send(const void* data, int64_t bytes, int peer, Handle handle, Stream stream) {
  return post("send", fmt::format("{} to {}", bytes, peer), handle, stream, [=, this] {
    MPI_Request request;
    MPI_Isend(data, static_cast<int>(bytes), MPI_BYTE, peer, 0, communicators_.at(handle)->mpi,
              &request);
    return request;
  });
}

Status NcclDouble::receive(void* data, int64_t bytes, int peer, Handle handle, Stream stream) {
  return post("receive", fmt::format("{} from {}", bytes, peer), handle, stream, [=, this] {
    MPI_Request request;
    MPI_Irecv(data, static_cast<int>(bytes), MPI_BYTE, peer, 0, communicators_.at(handle)->mpi,
              &request);
    return request;
  });
}

Status NcclDouble::broadcast(void* data, int64_t bytes, int root, Handle handle, Stream stream) {
  return post("broadcast", fmt::format("{} from {}", bytes, root), handle, stream, [=, this] {
    MPI_Request request;
    MPI_Ibcast(data, static_cast<int>(bytes), MPI_BYTE, root, communicators_.at(handle)->mpi,
               &request);
    return request;
  });
}

Status NcclDouble::all_reduce(void* data, int64_t count, Type type, ReduceOp op, Handle handle,
                              Stream stream) {
  const MPI_Datatype mpi_type = type == Type::int64 ? MPI_INT64_T : MPI_INT32_T;
  const MPI_Op mpi_op = op == ReduceOp::sum ? MPI_SUM : op == ReduceOp::max ? MPI_MAX : MPI_MIN;
  const auto text = fmt::format("{} of {} by {}", count, type == Type::int64 ? "int64" : "int32",
                                op == ReduceOp::sum   ? "sum"
                                : op == ReduceOp::max ? "max"
                                                      : "min");
  return post("all_reduce", text, handle, stream, [=, this] {
    MPI_Request request;
    MPI_Iallreduce(MPI_IN_PLACE, data, static_cast<int>(count), mpi_type, mpi_op,
                   communicators_.at(handle)->mpi, &request);
    return request;
  });
}

Status NcclDouble::finalize(Handle handle) {
  Ranks* ranks = usable(handle, "finalize");
  if (ranks == nullptr) return Status::failed;
  MPI_Ibarrier(ranks->mpi, &ranks->closing);
  ranks->polls = polls_in_progress;
  const Status status = note("finalize", "");
  return status == Status::success ? Status::in_progress : status;
}

Status NcclDouble::destroy(Handle handle) {
  Ranks* ranks = usable(handle, "destroy");
  if (ranks == nullptr) return Status::failed;
  if (!ranks->finalized) violations.push_back("destroy before the communicator is finalized");
  retired_.push_back(ranks->mpi);
  communicators_.erase(handle);
  return note("destroy", "");
}

Status NcclDouble::abort(Handle handle) {
  const auto found = communicators_.find(handle);
  if (found == communicators_.end()) {
    violations.push_back("abort of a communicator that is gone");
    return Status::failed;
  }
  for (MPI_Request& request : found->second->requests) {
    if (request == MPI_REQUEST_NULL) continue;
    MPI_Cancel(&request);
    MPI_Request_free(&request);
  }
  for (auto& [stream, queue] : streams_) {
    queue.passed = queue.queued;
    queue.tasks.clear();
  }
  if (found->second->mpi != MPI_COMM_NULL) retired_.push_back(found->second->mpi);
  communicators_.erase(found);
  return note("abort", "");
}

void NcclDouble::upload(void* memory, const void* host, int64_t bytes) {
  if (bytes > 0) std::memcpy(memory, host, static_cast<size_t>(bytes));
}

void NcclDouble::download(void* host, const void* memory, int64_t bytes) {
  if (bytes > 0) std::memcpy(host, memory, static_cast<size_t>(bytes));
}

}  // namespace selfcal::testing_support
