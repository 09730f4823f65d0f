#include "pipeline/handover.hpp"

#include <ATen/ATen.h>

#include "pipeline/tensor_exchange.hpp"

namespace selfcal {
namespace {

constexpr int note_tag = 10, asking_tag = 11;

/// Jobs in flight between two shards have tags of their own.
int lane(const Job& job, int shard) {
  return static_cast<int>(job.number % 2) * job.session.layout.shards() + shard;
}

int shard_of(const Job& job, const Communicator& world) {
  return job.session.layout.shard_of(world.rank());
}

int source_of(const Job& job, const Leaf& leaf, const Communicator& world) {
  return job.session.layout.owner(leaf.index, shard_of(job, world) - 1);
}

std::span<std::byte> bytes(auto& value) { return std::as_writable_bytes(std::span(&value, 1)); }

std::vector<std::byte> message_of(const auto& value) {
  const auto view = std::as_bytes(std::span(&value, 1));
  return {view.begin(), view.end()};
}

/// A rank of the shard before answers with the job's leaves.
void ask(Outbox& questions, const Job& job, int source) {
  questions.send(message_of(job.number), source, asking_tag);
}

/// Asks all sources at once: MPI keeps what they send apart.
std::unique_ptr<LeafInbox> ask_on_host(const Communicator& world, const SharedStop& stop,
                                       const Job& job, const std::vector<Leaf>& owned,
                                       Outbox& questions, std::function<void()> meanwhile) {
  const auto& shape = job.session.model.shape();
  const auto source = [&](const Leaf& leaf) { return source_of(job, leaf, world); };
  auto inbox = std::make_unique<BoundaryInbox>(
      world, stop, owned, static_cast<int64_t>(job.leaves.size()), lane(job, shard_of(job, world)),
      source, job.calibration.tokens.size(1), shape.hidden, shape.compute_dtype,
      std::move(meanwhile));
  std::set<int> sources;
  for (const auto& leaf : owned) sources.insert(source(leaf));
  for (const int rank : sources) ask(questions, job, rank);
  return inbox;
}

/// By NCCL, where what is posted first must come first: one source after the other, in the order of
/// their ranks, each asked when the one before has sent all of its leaves. So nothing is posted
/// that waits for a rank which has not been asked.
class DeviceInbox : public LeafInbox {
 public:
  DeviceInbox(const Communicator& world, const SharedStop& stop, const Job& job,
              const std::vector<Leaf>& owned, Outbox& questions, std::function<void()> meanwhile)
      : LeafInbox(world, stop, std::move(meanwhile)),
        job_(job),
        questions_(questions),
        parcels_(owned.size()) {
    const auto& shape = job.session.model.shape();
    const auto options = at::device(job.session.context.device.memory).dtype(shape.compute_dtype);
    for (size_t i = 0; i < owned.size(); ++i) {
      parcels_[i].hidden =
          at::empty({owned[i].rows, job.calibration.tokens.size(1), shape.hidden}, options);
      parcels_[i].source = source_of(job, owned[i], world);
      to_ask_.insert(parcels_[i].source);
    }
    ask_next();
  }

  at::Tensor take(size_t leaf) override {
    while (to_ask_.contains(parcels_.at(leaf).source)) {
      for (auto& parcel : parcels_)
        if (!to_ask_.contains(parcel.source)) wait_for(parcel);
      ask_next();
    }
    wait_for(parcels_[leaf]);
    return std::move(parcels_[leaf].hidden);
  }

 private:
  struct Parcel {
    at::Tensor hidden;
    int source = 0;
    Request request;
  };

  void ask_next() {
    if (to_ask_.empty()) return;
    const int source = to_ask_.extract(to_ask_.begin()).value();
    ask(questions_, job_, source);
    for (auto& parcel : parcels_)
      if (parcel.source == source)
        parcel.request = receive_tensors(world(), {parcel.hidden}, source);
  }

  void wait_for(Parcel& parcel) const {
    LeafInbox::wait_for(parcel.request, {"outputs of a shard", parcel.source});
  }

  const Job& job_;
  Outbox& questions_;
  std::vector<Parcel> parcels_;  // a leaf each
  std::set<int> to_ask_;
};

}  // namespace

void NextShard::tell(const Job& job, const JobNote& note) {
  for (const int rank : job.session.layout.team_of(shard_of(job, world_) + 1))
    notes_.send(message_of(note), rank, note_tag);
}

void NextShard::offer(const Job& job, std::vector<Leaf> owned, HiddenStates hidden) {
  job_ = &job;
  owned_ = std::move(owned);
  hidden_ = std::move(hidden);
  for (const auto& leaf : owned_)
    waiting_.insert(job.session.layout.owner(leaf.index, shard_of(job, world_) + 1));
  poll();  // who has asked already waits
}

void NextShard::poll() {
  while (const auto asked = world_.probe(asking_tag)) {
    int64_t number = 0;
    world_.receive(bytes(number), asked->source, asking_tag).wait();
    asked_.emplace(number, asked->source);
  }
  // A rank may ask for a job that the first rank of this team has told of and this one still has to
  // offer.
  while (job_ != nullptr && !asked_.empty() && asked_.begin()->first == job_->number) {
    send_to(asked_.begin()->second);
    asked_.erase(asked_.begin());
  }
  all_taken();  // what is gets free
}

void NextShard::send_to(int rank) {
  const auto scope = job_->session.timer.measure(Phase::send);
  const Layout& layout = job_->session.layout;
  const int next = shard_of(*job_, world_) + 1;
  const bool reached = reaches_devices(world_, job_->session.context.device);
  for (size_t i = 0; i < owned_.size(); ++i) {
    const int64_t index = owned_[i].index;
    if (layout.owner(index, next) != rank) continue;
    const at::Tensor hidden = std::exchange(hidden_[i], {}).get();
    if (reached)
      by_nccl_.push_back({hidden, send_tensors(world_, {hidden}, rank)});
    else
      outbox_.send(hidden, index, static_cast<int64_t>(job_->leaves.size()), lane(*job_, next),
                   rank);
  }
  waiting_.erase(rank);
}

void NextShard::finish() {
  const int who = waiting_.empty() ? Wait::anyone : *waiting_.begin();
  world_.wait_until({"outputs of a shard taken", who, asking_tag}, [&] {
    poll();
    return (waiting_.empty() && all_taken()) || stop_.requested();
  });
}

bool NextShard::all_taken() {
  std::erase_if(by_nccl_, [](Parcel& parcel) { return parcel.request.done(); });
  return all_sent() && by_nccl_.empty();
}

bool NextShard::all_sent() { return notes_.in_flight() == 0 && outbox_.in_flight() == 0; }

JobNote ShardBefore::note_of(const Job& job) {
  const int from = job.session.layout.team_of(shard_of(job, world_) - 1).front();
  note_request_ = world_.receive(bytes(note_), from, note_tag);
  bool came = false;
  world_.wait_until({"the shard before", from, note_tag}, [&] {
    next_.poll();
    return (came = note_request_.done()) || stop_.requested();
  });
  if (came && note_.job != job.number)
    fail(ExitCode::internal, "rank {} tells of job {}, expected {}", from, note_.job, job.number);
  return note_;
}

LeafInbox& ShardBefore::ask(const Job& job, const std::vector<Leaf>& owned) {
  const auto serve = [this] { next_.poll(); };
  if (reaches_devices(world_, job.session.context.device))
    inbox_ = std::make_unique<DeviceInbox>(world_, stop_, job, owned, questions_, serve);
  else
    inbox_ = ask_on_host(world_, stop_, job, owned, questions_, serve);
  return *inbox_;
}

}  // namespace selfcal
