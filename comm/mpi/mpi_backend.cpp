#include "comm/mpi/mpi_backend.hpp"

#include <algorithm>
#include <array>
#include <cstdlib>
#include <numeric>
#include <string>

#include "base/error.hpp"

namespace selfcal {
namespace {

constexpr int64_t chunk_bytes = int64_t{1} << 30;  // MPI counts are int
constexpr int64_t large_message = int64_t{1} << 16;
constexpr int64_t piece_bytes = int64_t{1} << 18;  // of a sum
constexpr int ring_tag = 0;                        // of collectives that are made of messages
constexpr int64_t slow_bytes_a_microsecond = 50;   // who moves fewer may sleep meanwhile

void check(int status, const char* call) {
  if (status == MPI_SUCCESS) return;
  std::array<char, MPI_MAX_ERROR_STRING> text{};
  int length = 0;
  MPI_Error_string(status, text.data(), &length);
  fail(ExitCode::internal, "{}: {}", call, text.data());
}

std::chrono::microseconds patience_for(int64_t bytes) {
  return std::max(usual_patience, std::chrono::microseconds(bytes / slow_bytes_a_microsecond));
}

/// MPI keeps the order of what it is given.
class Chunks : public Request::Operation {
 public:
  explicit Chunks(std::vector<MPI_Request> requests) : requests_(std::move(requests)) {}
  bool test() override {
    int flag = 0;
    check(MPI_Testall(static_cast<int>(requests_.size()), requests_.data(), &flag,
                      MPI_STATUSES_IGNORE),
          "MPI_Testall");
    return flag != 0;
  }

 protected:
  std::vector<MPI_Request> requests_;
};

/// Of one message.
class ChunkedMessage : public Chunks {
 public:
  ChunkedMessage(std::vector<MPI_Request> requests, int64_t) : Chunks(std::move(requests)) {}
  ~ChunkedMessage() override {
    for (auto& request : requests_) {
      if (request == MPI_REQUEST_NULL) continue;
      MPI_Cancel(&request);
      MPI_Request_free(&request);
    }
  }
  void give_up() override {
    for (auto& request : requests_)
      if (request != MPI_REQUEST_NULL) MPI_Cancel(&request);
    MPI_Waitall(static_cast<int>(requests_.size()), requests_.data(), MPI_STATUSES_IGNORE);
  }
};

/// Of one broadcast. MPI has no end for a collective but its own.
class ChunkedBroadcast : public Chunks {
 public:
  ChunkedBroadcast(std::vector<MPI_Request> requests, int64_t bytes)
      : Chunks(std::move(requests)), patience_(patience_for(bytes)) {}
  std::chrono::microseconds patience() const override { return patience_; }

 private:
  std::chrono::microseconds patience_;
};

/// Calls post(offset, length) for every chunk; an empty message is one empty chunk.
template <class Operation = ChunkedMessage, class Post>
Request post_chunks(int64_t bytes, Post post) {
  std::vector<MPI_Request> requests;
  int64_t offset = 0;
  do {
    const int64_t length = std::min(chunk_bytes, bytes - offset);
    requests.push_back(post(offset, static_cast<int>(length)));
    offset += length;
  } while (offset < bytes);
  return Request(std::make_unique<Operation>(std::move(requests), bytes));
}

int number_in(const char* variable, int otherwise) {
  const char* value = std::getenv(variable);
  return value ? std::atoi(value) : otherwise;
}

/// By MPI_Isend or one of its kind, named for messages.
Request post_send(decltype(MPI_Isend) call, const char* name, std::span<const std::byte> data,
                  int to, int tag, MPI_Comm handle) {
  return post_chunks(static_cast<int64_t>(data.size()), [&](int64_t offset, int length) {
    MPI_Request request;
    check(call(data.data() + offset, length, MPI_BYTE, to, tag, handle, &request), name);
    return request;
  });
}

}  // namespace

int counted_ranks() {
  int most = 0;
  for (const char* count : {"SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE"})
    most = std::max(most, number_in(count, 0));
  return most;
}

namespace {

/// The fewest ranks that there can be, as far as this one is told; 1 without a launcher; 0 for the
/// first rank of one that numbers ranks but does not count them.
int launched_ranks() {
  const int counted = counted_ranks(), rank = number_in("PMIX_RANK", -1);
  if (rank > 0) return std::max(counted, rank + 1);
  return counted == 0 && rank < 0 ? 1 : counted;
}

/// Whether a launcher has left word for an MPI.
bool is_told_of_others() {
  return std::ranges::any_of(
      std::array{"PMIX_RANK", "PMIX_NAMESPACE", "PMI_RANK", "PMI_FD", "OMPI_COMM_WORLD_SIZE"},
      [](const char* name) { return std::getenv(name) != nullptr; });
}

/// A step of several ranks that Slurm tells MPI nothing of (--mpi=none). Open MPI would end the
/// program from within MPI_Init, with a page of its own.
bool is_kept_from_mpi() { return number_in("SLURM_STEP_NUM_TASKS", 0) > 1 && !is_told_of_others(); }

[[noreturn]] void fail_alone(int launched, int counted) {
  fail(ExitCode::usage,
       "the launcher started {}{} ranks but MPI sees one; with srun, say --mpi=pmix (srun "
       "--mpi=list shows what is there)",
       launched > counted ? "at least " : "", launched);
}

}  // namespace

bool is_alone() {
  const int counted = counted_ranks();
  return counted == 0 ? !is_told_of_others() : counted == 1 && launched_ranks() == 1;
}

MpiSession::MpiSession() {
  // Asked first: an MPI that is alone writes what a launcher would into the environment.
  const int launched = launched_ranks(), counted = counted_ranks();
  if (is_kept_from_mpi()) fail_alone(launched, counted);
  int provided = 0;
  check(MPI_Init_thread(nullptr, nullptr, MPI_THREAD_FUNNELED, &provided), "MPI_Init_thread");
  int size = 0;
  MPI_Comm_size(MPI_COMM_WORLD, &size);
  if (size == 1 && launched > 1) {
    MPI_Finalize();
    fail_alone(launched, counted);
  }
}

MpiSession::~MpiSession() { MPI_Finalize(); }

std::shared_ptr<MpiBackend> MpiBackend::world() {
  MPI_Comm copy = MPI_COMM_NULL;
  check(MPI_Comm_dup(MPI_COMM_WORLD, &copy), "MPI_Comm_dup");
  return std::make_shared<MpiBackend>(copy, std::make_shared<Activity>());
}

MpiBackend::MpiBackend(MPI_Comm handle, std::shared_ptr<Activity> activity)
    : Backend(std::move(activity)), handle_(handle) {
  MPI_Comm_set_errhandler(handle_, MPI_ERRORS_RETURN);
  MPI_Comm_rank(handle_, &rank_);
  MPI_Comm_size(handle_, &size_);
  std::vector<int> ranks(static_cast<size_t>(size_));
  std::iota(ranks.begin(), ranks.end(), 0);
  world_ranks_.resize(ranks.size());
  MPI_Group group = MPI_GROUP_NULL, everyone = MPI_GROUP_NULL;
  MPI_Comm_group(handle_, &group);
  MPI_Comm_group(MPI_COMM_WORLD, &everyone);
  MPI_Group_translate_ranks(group, size_, ranks.data(), everyone, world_ranks_.data());
  MPI_Group_free(&group);
  MPI_Group_free(&everyone);
}

MpiBackend::~MpiBackend() {
  int finalized = 0;
  MPI_Finalized(&finalized);
  if (!finalized) MPI_Comm_free(&handle_);
}

std::shared_ptr<Communicator::Backend> MpiBackend::split(int color) {
  MPI_Comm part = MPI_COMM_NULL;
  check(MPI_Comm_split(handle_, color, rank_, &part), "MPI_Comm_split");
  return std::make_shared<MpiBackend>(part, activity());
}

void MpiBackend::wait_for(MPI_Request& request, const char* what, int peer,
                          std::chrono::microseconds patience) {
  const auto done = [&] {
    int flag = 0;
    check(MPI_Test(&request, &flag, MPI_STATUS_IGNORE), "MPI_Test");
    return flag != 0;
  };
  wait_until(*activity(), {what, peer}, done, patience);
}

void MpiBackend::finish(Request& request, const char* what, int peer,
                        std::chrono::microseconds patience) {
  const auto done = [&] { return request.done(); };
  wait_until(*activity(), {what, world_rank_of(peer)}, done, patience);
}

std::chrono::microseconds MpiBackend::meet_for(int64_t bytes) {
  if (bytes < large_message) return usual_patience;
  barrier();
  return patience_for(bytes);
}

void MpiBackend::barrier() {
  MPI_Request request;
  check(MPI_Ibarrier(handle_, &request), "MPI_Ibarrier");
  wait_for(request, "barrier");
}

void MpiBackend::broadcast(std::span<std::byte> data, int root) {
  const auto patience = meet_for(static_cast<int64_t>(data.size()));
  Request request = begin_broadcast(data, root);
  finish(request, "broadcast", root, patience);
}

Request MpiBackend::begin_broadcast(std::span<std::byte> data, int root) {
  return post_chunks<ChunkedBroadcast>(
      static_cast<int64_t>(data.size()), [&](int64_t offset, int length) {
        MPI_Request request;
        check(MPI_Ibcast(data.data() + offset, length, MPI_BYTE, root, handle_, &request),
              "MPI_Ibcast");
        return request;
      });
}

void MpiBackend::all_reduce(void* data, int64_t count, Element element, ReduceOp op) {
  if (size_ == 1) return;
  const MPI_Datatype type = element == Element::int64 ? MPI_INT64_T : MPI_INT32_T;
  const int64_t width = element == Element::int64 ? 8 : 4;
  const MPI_Op operation = op == ReduceOp::sum ? MPI_SUM : op == ReduceOp::max ? MPI_MAX : MPI_MIN;
  const auto patience = meet_for(count * width);
  const int64_t chunk = (count + size_ - 1) / size_;
  auto* bytes = static_cast<std::byte*>(data);
  if (chunk * width < large_message) {
    MPI_Request request;
    check(MPI_Iallreduce(MPI_IN_PLACE, data, static_cast<int>(count), type, operation, handle_,
                         &request),
          "MPI_Iallreduce");
    return wait_for(request, "all_reduce", Wait::all, patience);
  }
  // P. Patarasuk, X. Yuan, Bandwidth optimal all-reduce algorithms for clusters of workstations
  // (2009). Open MPI's own that does not block makes itself a buffer of all of it each time, and
  // takes three times as long within a host.
  std::vector<std::span<std::byte>> chunks;
  for (int64_t first = 0; std::ssize(chunks) < size_; first += chunk) {
    const int64_t end = std::min(first + chunk, count);
    chunks.emplace_back(bytes + std::min(first, count) * width,
                        static_cast<size_t>(std::max<int64_t>(end - first, 0) * width));
  }
  reduce_scatter(chunks, type, operation, patience);
  pass_round(chunks, next(), patience);
}

void MpiBackend::reduce_scatter(std::span<const std::span<std::byte>> chunks, MPI_Datatype type,
                                MPI_Op operation, std::chrono::microseconds patience) {
  int width = 0;
  MPI_Type_size(type, &width);
  // A piece is added up while the next one comes, in a cache.
  const auto pieces = (static_cast<int64_t>(chunks[0].size()) + piece_bytes - 1) / piece_bytes;
  const auto piece_of = [](std::span<std::byte> chunk, int64_t piece) {
    const auto first = std::min(chunk.size(), static_cast<size_t>(piece * piece_bytes));
    return chunk.subspan(first, std::min(chunk.size() - first, size_t{piece_bytes}));
  };
  // By turns: room for what comes, and the messages.
  std::array<std::vector<std::byte>, 2> room{std::vector<std::byte>(piece_bytes),
                                             std::vector<std::byte>(piece_bytes)};
  std::array<Request, 2> sent, received;
  for (int step = 0; step + 1 < size_; ++step) {
    const auto& out = chunks[static_cast<size_t>((rank_ - step + size_) % size_)];
    const auto& in = chunks[static_cast<size_t>((previous() - step + size_) % size_)];
    const auto start = [&](int64_t piece) {
      const auto turn = static_cast<size_t>(piece % 2);
      sent[turn] = send(piece_of(out, piece), next(), ring_tag);
      received[turn] =
          receive(std::span(room[turn]).first(piece_of(in, piece).size()), previous(), ring_tag);
    };
    start(0);
    for (int64_t piece = 0; piece < pieces; ++piece) {
      if (piece + 1 < pieces) start(piece + 1);
      const auto turn = static_cast<size_t>(piece % 2);
      finish(received[turn], "all_reduce", previous(), patience);
      const auto into = piece_of(in, piece);
      check(MPI_Reduce_local(room[turn].data(), into.data(), static_cast<int>(into.size()) / width,
                             type, operation),
            "MPI_Reduce_local");
      finish(sent[turn], "all_reduce", next(), patience);
    }
  }
}

void MpiBackend::pass_round(std::span<const std::span<std::byte>> parts, int whole,
                            std::chrono::microseconds patience) {
  for (int step = 0; step + 1 < size_; ++step) {
    const auto part = [&](int behind) {
      return parts[static_cast<size_t>((whole - step - behind + 2 * size_) % size_)];
    };
    Request sent = send(part(0), next(), ring_tag);
    Request received = receive(part(1), previous(), ring_tag);
    finish(received, "all_gather", previous(), patience);
    finish(sent, "all_gather", next(), patience);
  }
}

void MpiBackend::all_gather(std::span<const std::span<std::byte>> parts) {
  if (size_ == 1) return;
  int64_t bytes = 0;
  for (const auto& part : parts) bytes += static_cast<int64_t>(part.size());
  pass_round(parts, rank_, meet_for(bytes));
}

Request MpiBackend::send(std::span<const std::byte> data, int to, int tag) {
  return post_send(MPI_Isend, "MPI_Isend", data, to, tag, handle_);
}

Request MpiBackend::send_until_taken(std::span<const std::byte> data, int to, int tag) {
  return post_send(MPI_Issend, "MPI_Issend", data, to, tag, handle_);
}

Request MpiBackend::receive(std::span<std::byte> into, int from, int tag) {
  return post_chunks(static_cast<int64_t>(into.size()), [&](int64_t offset, int length) {
    MPI_Request request;
    check(MPI_Irecv(into.data() + offset, length, MPI_BYTE, from, tag, handle_, &request),
          "MPI_Irecv");
    return request;
  });
}

std::optional<Envelope> MpiBackend::probe(int tag) {
  int flag = 0;
  MPI_Status status;
  check(MPI_Iprobe(MPI_ANY_SOURCE, tag, handle_, &flag, &status), "MPI_Iprobe");
  if (!flag) return std::nullopt;
  int bytes = 0;
  MPI_Get_count(&status, MPI_BYTE, &bytes);
  return Envelope{status.MPI_SOURCE, status.MPI_TAG, bytes};
}

// T. Hoefler et al., Scalable communication protocols for dynamic sparse data exchange (2010): who
// has nothing left on its way enters a barrier that does not block, and serves others until it is
// passed.
void MpiBackend::drop_messages(const std::function<bool()>& all_sent) {
  MPI_Request barrier = MPI_REQUEST_NULL;
  bool entered = false;
  std::vector<std::byte> dropped;
  wait_until(*activity(), {"messages dropped", Wait::all}, [&] {
    while (const auto envelope = probe(MPI_ANY_TAG)) {
      dropped.resize(static_cast<size_t>(envelope->bytes));
      receive(dropped, envelope->source, envelope->tag).wait();
    }
    if (!entered && all_sent()) {
      check(MPI_Ibarrier(handle_, &barrier), "MPI_Ibarrier");
      entered = true;
    }
    int passed = 0;
    if (entered) check(MPI_Test(&barrier, &passed, MPI_STATUS_IGNORE), "MPI_Test");
    return passed != 0;
  });
}

void MpiBackend::abort(int code) {
  MPI_Abort(handle_, code);
  std::_Exit(code);
}

}  // namespace selfcal
