#include "pipeline/handover.hpp"

#include <ATen/ATen.h>

#include <map>

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

/// Ends without the message when a stop is wished for.
void wait_for(const Communicator& world, const SharedStop& stop, Request request,
              const Wait& wait) {
  world.wait_until(wait, [&] { return request.done() || stop.requested(); });
}

std::span<std::byte> bytes(auto& value) { return std::as_writable_bytes(std::span(&value, 1)); }

}  // namespace

void NextShard::tell(const Job& job, const JobNote& note) {
  for (const int rank : job.session.layout.team_of(shard_of(job, world_) + 1)) {
    auto& letter = letters_.emplace_back(Letter{note, {}});
    letter.request = world_.send(bytes(letter.note), rank, note_tag);
  }
}

void NextShard::offer(const Job& job, std::vector<Leaf> owned, std::vector<at::Tensor> hidden) {
  job_ = &job;
  owned_ = std::move(owned);
  hidden_ = std::move(hidden);
  for (const auto& leaf : owned_)
    waiting_.insert(job.session.layout.owner(leaf.index, shard_of(job, world_) + 1));
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
  std::erase_if(letters_, [](Letter& letter) { return letter.request.done(); });
}

void NextShard::send_to(int rank) {
  const auto scope = job_->session.timer.measure(Phase::send);
  const Layout& layout = job_->session.layout;
  const int next = shard_of(*job_, world_) + 1;
  std::vector<size_t> wanted;  // of owned_
  for (size_t i = 0; i < owned_.size(); ++i)
    if (layout.owner(owned_[i].index, next) == rank) wanted.push_back(i);
  if (reaches_devices(world_, job_->session.context.device)) {
    std::vector<at::Tensor> leaves;
    for (const size_t i : wanted) leaves.push_back(hidden_[i]);
    wait_for(world_, stop_, send_tensors(world_, leaves, rank), {"outputs of a shard taken", rank});
  } else {
    for (const size_t i : wanted)
      outbox_.send(hidden_[i], owned_[i].index, static_cast<int64_t>(job_->leaves.size()),
                   lane(*job_, next), rank);
    outbox_.finish();  // the rank that asks does nothing but receive
  }
  waiting_.erase(rank);
  if (waiting_.empty()) hidden_.clear();
}

void NextShard::finish() {
  const int who = waiting_.empty() ? Wait::anyone : *waiting_.begin();
  world_.wait_until({"outputs of a shard taken", who, asking_tag}, [&] {
    poll();
    return (waiting_.empty() && letters_.empty()) || stop_.requested();
  });
}

bool NextShard::all_sent() {
  std::erase_if(letters_, [](Letter& letter) { return letter.request.done(); });
  return letters_.empty() && outbox_.in_flight() == 0;
}

JobNote ShardBefore::note_of(const Job& job) {
  const int from = job.session.layout.team_of(shard_of(job, world_) - 1).front();
  note_request_ = world_.receive(bytes(note_), from, note_tag);
  bool came = false;
  world_.wait_until({"the shard before", from, note_tag},
                    [&] { return (came = note_request_.done()) || stop_.requested(); });
  if (came && note_.job != job.number)
    fail(ExitCode::internal, "rank {} tells of job {}, expected {}", from, note_.job, job.number);
  return note_;
}

std::vector<at::Tensor> ShardBefore::take(const Job& job, const std::vector<Leaf>& owned) {
  return reaches_devices(world_, job.session.context.device) ? take_on_device(job, owned)
                                                             : take_on_host(job, owned);
}

std::vector<at::Tensor> ShardBefore::take_on_host(const Job& job, const std::vector<Leaf>& owned) {
  const int shard = shard_of(job, world_);
  const auto& shape = job.session.model.shape();
  inbox_.emplace(
      world_, owned, static_cast<int64_t>(job.leaves.size()), lane(job, shard),
      [&](const Leaf& leaf) { return source_of(job, leaf, world_); },
      job.calibration.tokens.size(1), shape.hidden, shape.compute_dtype);
  std::set<int> sources;
  for (const auto& leaf : owned) sources.insert(source_of(job, leaf, world_));
  int64_t number = job.number;
  std::vector<Request> questions;
  for (const int rank : sources) questions.push_back(world_.send(bytes(number), rank, asking_tag));
  auto hidden = inbox_->take(stop_);
  for (auto& question : questions) question.wait();
  return hidden;
}

/// One source after the other, in the order of their ranks, each asked when its turn comes: a
/// sender waits for a receiver that waits for nobody but senders of lower rank.
std::vector<at::Tensor> ShardBefore::take_on_device(const Job& job,
                                                    const std::vector<Leaf>& owned) {
  const auto& shape = job.session.model.shape();
  const auto options = at::device(job.session.context.device.memory).dtype(shape.compute_dtype);
  std::vector<at::Tensor> hidden;
  std::map<int, std::vector<at::Tensor>> from;  // by source
  for (const auto& leaf : owned) {
    hidden.push_back(at::empty({leaf.rows, job.calibration.tokens.size(1), shape.hidden}, options));
    from[source_of(job, leaf, world_)].push_back(hidden.back());
  }
  for (const auto& [rank, leaves] : from) {
    int64_t number = job.number;
    Request question = world_.send(bytes(number), rank, asking_tag);
    wait_for(world_, stop_, receive_tensors(world_, leaves, rank), {"outputs of a shard", rank});
    question.wait();
  }
  return hidden;
}

}  // namespace selfcal
