#include "pipeline/handover.hpp"

#include <ATen/ATen.h>

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
  const int next = shard_of(*job_, world_) + 1;
  for (size_t i = 0; i < owned_.size(); ++i)
    if (job_->session.layout.owner(owned_[i].index, next) == rank)
      outbox_.send(hidden_[i], owned_[i].index, static_cast<int64_t>(job_->leaves.size()),
                   lane(*job_, next), rank);
  outbox_.finish();  // the rank that asks does nothing but receive
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
  const int shard = shard_of(job, world_);
  const auto& layout = job.session.layout;
  const auto& shape = job.session.model.shape();
  const auto source = [&](const Leaf& leaf) { return layout.owner(leaf.index, shard - 1); };
  inbox_.emplace(world_, owned, static_cast<int64_t>(job.leaves.size()), lane(job, shard), source,
                 job.calibration.tokens.size(1), shape.hidden, shape.compute_dtype);
  std::set<int> sources;
  for (const auto& leaf : owned) sources.insert(source(leaf));
  int64_t number = job.number;
  std::vector<Request> questions;
  for (const int rank : sources) questions.push_back(world_.send(bytes(number), rank, asking_tag));
  auto hidden = inbox_->take(stop_);
  for (auto& question : questions) question.wait();
  return hidden;
}

}  // namespace selfcal
