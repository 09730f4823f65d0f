#include "pipeline/sampling.hpp"

#include <ATen/ATen.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <map>
#include <memory>
#include <optional>

#include "comm/agreement.hpp"
#include "comm/outbox.hpp"
#include "pipeline/replica.hpp"
#include "pipeline/tensor_message.hpp"

namespace selfcal {
namespace {

constexpr size_t batches_in_flight = 4;  // of one rank, not yet taken by rank 0

enum Tag { batch_tag = 1, progress_tag, end_tag };

std::vector<std::byte> to_message(const MicroBatch& batch) {
  return pack_tensors({{"index", at::tensor({batch.index}, at::kLong)},
                       {"tokens", batch.tokens},
                       {"log_prob", batch.log_prob},
                       {"temperature", batch.temperature}});
}

MicroBatch to_batch(std::span<const std::byte> message) {
  const auto tensors = unpack_tensors(message);
  return {tensors.at("index").item<int64_t>(), tensors.at("tokens"), tensors.at("log_prob"),
          tensors.at("temperature")};
}

std::optional<std::vector<std::byte>> next_message(const Communicator& world, int tag) {
  const auto envelope = world.probe(tag);
  if (!envelope) return std::nullopt;
  std::vector<std::byte> message(static_cast<size_t>(envelope->bytes));
  world.receive(message, envelope->source, tag).wait();
  return message;
}

std::vector<std::byte> to_bytes(const std::vector<int64_t>& numbers) {
  const auto bytes = std::as_bytes(std::span(numbers));
  return {bytes.begin(), bytes.end()};
}

int64_t number(const std::vector<std::byte>& message, size_t index = 0) {
  int64_t value = 0;
  std::memcpy(&value, message.data() + index * sizeof value, sizeof value);
  return value;
}

/// One rank's part. Every other rank ends with an end message to rank 0 that says how many batches
/// it sent (messages of different tags may be seen out of order), so rank 0 knows when nothing is
/// on its way.
class Sampling {
 public:
  Sampling(const Session& session, const SamplingHooks& hooks)
      : world_(session.world),
        timer_(session.timer),
        hooks_(hooks),
        stop_(session.stop),
        outbox_(world_),
        batches_out_(world_, batches_in_flight) {}

  void finished(const MicroBatch& batch) {
    sampled_ += batch.tokens.numel();
    if (world_.rank() == 0) {
      hooks_.on_arrived(batch);
    } else {
      auto message = to_message(batch);
      const auto waiting = timer_.measure(Phase::idle);  // for rank 0 to take the earlier ones
      batches_out_.send(std::move(message), 0, batch_tag);
    }
    ++batches_;
  }

  /// True when sampling should stop; called after every token, and while a replica's rank waits.
  bool poll(int64_t tokens_in_batch) {
    // The rank that can end a replica's work may be another one than has the wish: all hear of it.
    if (world_.rank() == 0) {
      in_progress_[0] = sampled_ + tokens_in_batch;
      serve();
    } else {
      const auto now = std::chrono::steady_clock::now();
      if (now > next_report_) {
        outbox_.send(to_bytes({world_.rank(), sampled_ + tokens_in_batch}), 0, progress_tag);
        next_report_ = now + std::chrono::milliseconds(500);
      }
    }
    return stop_.requested();
  }

  /// Rank 0 takes what arrives until all have ended; the others say that they have. Throws Stopped
  /// on all ranks when one wants to stop.
  void end() {
    if (world_.rank() == 0) {
      ++ended_;
      world_.wait_until({"sampled batches", Wait::anyone}, [&] {
        serve();
        return ended_ == world_.size() && received_ == announced_;
      });
    } else {
      outbox_.send(to_bytes({batches_}), 0, end_tag);
    }
    batches_out_.finish();
    outbox_.finish();
    stop_together(world_, stop_);
  }

 private:
  void serve() {
    while (const auto message = next_message(world_, batch_tag)) {
      hooks_.on_arrived(to_batch(*message));
      ++received_;
    }
    while (const auto message = next_message(world_, progress_tag))
      in_progress_[number(*message)] = number(*message, 1);
    while (const auto message = next_message(world_, end_tag)) {
      ++ended_;
      announced_ += number(*message);
    }
    int64_t total = 0;
    for (const auto& [rank, tokens] : in_progress_) total += tokens;
    hooks_.on_progress(total);
  }

  const Communicator& world_;
  PhaseTimer& timer_;
  const SamplingHooks& hooks_;
  const SharedStop& stop_;
  Outbox outbox_;                           // for words
  Outbox batches_out_;                      // for micro-batches
  std::map<int64_t, int64_t> in_progress_;  // rank 0: tokens sampled, by rank
  int64_t sampled_ = 0;
  int64_t batches_ = 0;                   // finished by this rank
  int64_t received_ = 0, announced_ = 0;  // rank 0: batches of the others
  int ended_ = 0;
  std::chrono::steady_clock::time_point next_report_{};
};

}  // namespace

namespace {

/// The micro-batches of a replica that are still to be sampled.
std::vector<int64_t> batches_of(const Session& session, int replica,
                                const std::set<int64_t>& done) {
  std::vector<int64_t> batches;
  for (int64_t batch = 0; batch < micro_batches(session.config.calibration); ++batch)
    if (!done.contains(batch) && session.layout.replica_of(batch) == replica)
      batches.push_back(batch);
  return batches;
}

/// This rank alone holds a copy of the model.
void sample_alone(const Session& session, const std::vector<int64_t>& batches,
                  const SamplingHooks& hooks, Sampling& sampling) {
  std::unique_ptr<Generator> generator;
  agree(session.world, [&] {
    const auto scope = session.timer.measure(Phase::read);
    if (!batches.empty())
      generator = std::make_unique<Generator>(
          session.model, session.config.calibration, session.context,
          batches_of_step(std::ssize(batches), session.sampled_at_once, 1));
  });
  if (!generator) return;
  const auto scope = session.timer.measure(Phase::sample);
  const auto on_finished = [&](const MicroBatch& batch) {
    hooks.on_sampled(batch, *generator);
    sampling.finished(batch);
  };
  try {
    generator->sample(batches, on_finished, [&](int64_t tokens) {
      session.world.activity().advance();
      if (sampling.poll(tokens)) throw Stopped();
    });
  } catch (const Stopped&) {  // which all hear of at the end
  }
}

/// Several ranks hold one copy.
void sample_as_replicas(const Session& session, int replica, const std::vector<int64_t>& batches,
                        Sampling& sampling) {
  const Communicator ranks = session.world.split(replica < 0 ? session.layout.replicas() : replica);
  std::unique_ptr<Replica> part;
  agree(session.world, [&] {
    const auto scope = session.timer.measure(Phase::read);
    if (!batches.empty())
      part = std::make_unique<Replica>(
          ranks, session.model, session.config.calibration, session.context, session.timer,
          batches_of_step(std::ssize(batches), session.sampled_at_once, ranks.size()));
  });
  if (!part) return;
  const auto scope = session.timer.measure(Phase::sample);
  part->sample(
      batches, [&](const MicroBatch& batch) { sampling.finished(batch); },
      [&](int64_t tokens) { return sampling.poll(tokens); });
}

}  // namespace

void sample_together(const Session& session, const std::set<int64_t>& done,
                     const SamplingHooks& hooks) {
  const auto& generators = session.layout.generators();
  const auto place = std::ranges::find(generators, session.world.rank()) - generators.begin();
  const int replica =
      place < std::ssize(generators) ? static_cast<int>(place) / session.layout.depth() : -1;
  const std::vector<int64_t> batches = batches_of(session, replica, done);
  Sampling sampling(session, hooks);
  if (session.layout.depth() == 1)
    sample_alone(session, batches, hooks, sampling);
  else
    sample_as_replicas(session, replica, batches, sampling);
  sampling.end();
}

}  // namespace selfcal
