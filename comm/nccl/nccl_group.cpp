#include "comm/nccl/nccl_group.hpp"

#include <utility>

#include "base/error.hpp"

namespace selfcal {

using Status = NcclCalls::Status;

class NcclGroup::Event {
 public:
  explicit Event(NcclCalls& calls) : calls_(calls), made_(calls.create_event(event_)) {}
  ~Event() {
    if (made_ == Status::success) calls_.destroy_event(event_);
  }
  Event(const Event&) = delete;
  Event& operator=(const Event&) = delete;

  Status record(NcclCalls::Stream stream) {
    return made_ == Status::success ? calls_.record(event_, stream) : made_;
  }
  Status query() { return calls_.query(event_); }
  NcclCalls::Event handle() const { return event_; }

 private:
  NcclCalls& calls_;
  NcclCalls::Event event_ = nullptr;
  Status made_;
};

class NcclGroup::Deadline {
 public:
  explicit Deadline(const NcclOptions& options) : options_(options), end_(after_timeout()) {}

  bool passed() {
    if (std::chrono::steady_clock::now() < end_) return false;
    end_ = after_timeout();
    return !(options_.peers_alive && options_.peers_alive());
  }

 private:
  std::chrono::steady_clock::time_point after_timeout() const {
    return std::chrono::steady_clock::now() + options_.timeout;
  }
  const NcclOptions& options_;
  std::chrono::steady_clock::time_point end_;
};

/// Work that was handed to NCCL: first NCCL starts it, then the device does it.
struct NcclGroup::Flight {
  Flight(std::string text, NcclCalls& calls, const NcclOptions& options)
      : what(std::move(text)), end(calls), deadline(options) {}
  std::string what;
  Event end;  // recorded once the work is in the stream
  Deadline deadline;
  bool launched = false;
};

class NcclGroup::Pending : public Request::Operation {
 public:
  Pending(std::shared_ptr<NcclGroup> group, std::shared_ptr<Flight> flight)
      : group_(std::move(group)), flight_(std::move(flight)) {}
  bool test() override { return group_->finished(*flight_); }

 private:
  std::shared_ptr<NcclGroup> group_;
  std::shared_ptr<Flight> flight_;
};

NcclGroup::NcclGroup(std::shared_ptr<NcclCalls> calls, const NcclOptions& options,
                     std::shared_ptr<Activity> activity, int ranks, const NcclCalls::UniqueId& id,
                     int rank)
    : calls_(std::move(calls)),
      options_(options),
      activity_(std::move(activity)),
      name_(fmt::format("NCCL on rank {} of {} (GPU {}, {})", rank, ranks, options.device,
                        calls_->bus_id(options.device))) {
  try {
    create(ranks, id, rank);
  } catch (...) {
    release();
    throw;
  }
}

void NcclGroup::create(int ranks, const NcclCalls::UniqueId& id, int rank) {
  const std::string what = "making the communicator";
  check(calls_->set_device(options_.device), what);
  check(calls_->create_stream(stream_), what);
  check(calls_->init(handle_, ranks, id, rank), what);
  Deadline deadline(options_);
  wait_until(*activity_, {"NCCL init"}, [&] {
    const Status status = calls_->async_error(handle_);
    check(status, what);
    if (status == Status::in_progress) fail_if_late(deadline, what);
    return status == Status::success;
  });
}

NcclGroup::~NcclGroup() { release(); }

/// The orderly end where nothing is under way, the abort everywhere else.
void NcclGroup::release() noexcept {
  try {
    if (handle_ != nullptr) {
      if (is_idle() && close())
        calls_->destroy(handle_);
      else
        calls_->abort(handle_);
    }
  } catch (...) {  // nobody is left to hear of it
  }
  handle_ = nullptr;
  launching_.reset();
  if (stream_ != nullptr) calls_->destroy_stream(stream_);
  stream_ = nullptr;
}

bool NcclGroup::is_idle() {
  if (launching_ || calls_->set_device(options_.device) != Status::success) return false;
  Event now(*calls_);
  return now.record(stream_) == Status::success && now.query() == Status::success &&
         calls_->async_error(handle_) == Status::success;
}

/// Whether all ranks have finalised in time.
bool NcclGroup::close() {
  Status status = calls_->finalize(handle_);
  Deadline deadline(options_);
  wait_until(*activity_, {"NCCL finalize"}, [&] {
    if (status == Status::in_progress) status = calls_->async_error(handle_);
    return status != Status::in_progress || deadline.passed();
  });
  return status == Status::success;
}

Request NcclGroup::run(const std::string& what, std::span<const DeviceBuffer> buffers,
                       const std::function<Status(NcclCalls::Handle, NcclCalls::Stream)>& post) {
  fail_if_broken();
  for (const DeviceBuffer& buffer : buffers) {
    if (buffer.device != options_.device)
      fail(ExitCode::internal, "{}: {}: the memory is on GPU {}", name_, what, buffer.device);
  }
  settle();
  check(calls_->set_device(options_.device), what);
  for (const DeviceBuffer& buffer : buffers) queue_behind(buffer, what);
  auto flight = std::make_shared<Flight>(what, *calls_, options_);
  check(calls_->group_start(), what);
  const Status posted = post(handle_, stream_);
  const Status ended = calls_->group_end();
  check(posted, what);
  check(ended, what);
  launching_ = flight;
  launched(*flight);
  return Request(std::make_unique<Pending>(shared_from_this(), std::move(flight)));
}

void NcclGroup::queue_behind(const DeviceBuffer& buffer, const std::string& what) {
  Event ready(*calls_);
  check(ready.record(buffer.stream), what);
  check(calls_->wait(stream_, ready.handle()), what);
}

/// Whether the work is in the stream, which the event at its end tells.
bool NcclGroup::launched(Flight& flight) {
  if (flight.launched) return true;
  const Status status = calls_->async_error(handle_);
  check(status, flight.what);
  if (status == Status::in_progress) {
    fail_if_late(flight.deadline, flight.what);
    return false;
  }
  check(flight.end.record(stream_), flight.what);
  flight.launched = true;
  launching_.reset();
  return true;
}

bool NcclGroup::finished(Flight& flight) {
  fail_if_broken();
  if (!launched(flight)) return false;
  const Status status = flight.end.query();
  check(status, flight.what);
  if (status == Status::success) return true;
  check(calls_->async_error(handle_), flight.what);
  fail_if_late(flight.deadline, flight.what);
  return false;
}

/// A communicator that is starting work takes no other call.
void NcclGroup::settle() {
  if (const std::shared_ptr<Flight> flight = launching_)
    wait_until(*activity_, {"NCCL launch"}, [&] { return launched(*flight); });
}

void NcclGroup::check(Status status, const std::string& what) {
  if (status == Status::failed) break_off(what, calls_->error_text());
}

void NcclGroup::fail_if_late(Deadline& deadline, const std::string& what) {
  if (!deadline.passed()) return;
  break_off(what, fmt::format("no answer from the other ranks for {:.3g} s",
                              std::chrono::duration<double>(options_.timeout).count()));
}

void NcclGroup::fail_if_broken() const {
  if (!broken_.empty()) fail(ExitCode::internal, "{}", broken_);
}

void NcclGroup::break_off(const std::string& what, const std::string& why) {
  std::string line = fmt::format("{}: {}: {}; the communicator is aborted", name_, what, why);
  for (char& c : line) c = c == '\n' ? ' ' : c;
  broken_ = std::move(line);
  if (handle_ != nullptr) calls_->abort(std::exchange(handle_, nullptr));
  launching_.reset();
  fail(ExitCode::internal, "{}", broken_);
}

}  // namespace selfcal
