#include "pipeline/shard.hpp"

#include <ATen/ATen.h>

#include <chrono>
#include <future>
#include <thread>

#include "base/hash.hpp"
#include "comm/agreement.hpp"
#include "pipeline/layer_compressor.hpp"
#include "pipeline/tensor_message.hpp"
#include "storage/layer_scan.hpp"

namespace selfcal {
namespace {

constexpr int chain_tag = 10;
constexpr size_t hash_digits = 32;

/// A block's weights: read by the team's first rank, a layer ahead, and broadcast.
class BlockReader {
 public:
  BlockReader(const Session& session, const Communicator& team, int64_t end)
      : session_(session), team_(team), end_(end) {}

  /// Collective over the team.
  BlockWeights read(int64_t layer) {
    const auto scope = session_.timer.measure(Phase::read);
    BlockWeights weights;
    agree(team_, [&] {
      if (team_.rank() != 0) return;
      weights = ahead_.valid() ? ahead_.get() : session_.model.read_block(layer);
      if (layer + 1 < end_)
        ahead_ = std::async(std::launch::async, [this, layer] {
          kernels::use_one_library_thread();
          return session_.model.read_block(layer + 1);
        });
    });
    if (team_.size() > 1) {
      if (team_.rank() != 0)
        for (const auto& [name, shape] : session_.model.block(layer).spec().parameters)
          weights[name] = at::empty(shape, session_.model.shape().compute_dtype);
      for (auto& [name, tensor] : weights) team_.broadcast(bytes_of(tensor), 0);
    }
    return weights;
  }

 private:
  const Session& session_;
  const Communicator& team_;
  int64_t end_;
  std::future<BlockWeights> ahead_;
};

class ShardRun {
 public:
  ShardRun(const Session& session, const Job& job)
      : session_(session),
        job_(job),
        shard_(session.layout.shard_of(session.world.rank())),
        team_(session.world.split(shard_)) {
    for (const auto& leaf : job.leaves)
      if (session.layout.owner(leaf.index, shard_) == session.world.rank()) owned_.push_back(leaf);
  }

  std::vector<LayerReport> run(std::optional<BoundaryInbox> inbox) {
    const int64_t first = session_.layout.first_layer(shard_),
                  end = session_.layout.first_layer(shard_ + 1);
    receive_inputs(std::move(inbox));
    BlockReader reader(session_, team_, end);
    session_.progress.start("compress", end - first, "layers");
    session_.progress.update(0);
    for (int64_t layer = first; layer < end; ++layer) {
      BlockWeights weights = reader.read(layer);
      if (is_committed(layer))
        replay(layer, std::move(weights));
      else
        compress(layer, std::move(weights));
      session_.progress.update(layer + 1 - first);
    }
    finish_commit();
    session_.progress.finish();
    send_outputs();
    return std::move(reports_);
  }

  /// The rank that reads and writes for its team.
  bool leads() const { return team_.rank() == 0; }

 private:
  bool sequential() const { return session_.config.propagation == Propagation::sequential; }
  /// An intact file whose chain is what this run comes to: with sequential propagation, only if all
  /// before it are too.
  bool is_committed(int64_t layer) const {
    const auto& header = job_.committed.at(static_cast<size_t>(layer));
    return header && follows(*header, sequential() ? chain_ : "");
  }

  void receive_inputs(std::optional<BoundaryInbox> inbox) {
    if (shard_ == 0) {
      const auto scope = session_.timer.measure(Phase::read);
      const OuterWeights outer = session_.model.read_outer();
      for (const auto& leaf : owned_)
        hidden_.push_back(
            session_.model.embed(job_.tokens.narrow(0, leaf.first, leaf.rows), outer));
      return;
    }
    const auto& shape = session_.model.shape();
    if (!inbox) {
      const int before = shard_ - 1;
      inbox.emplace(
          session_.world, owned_, static_cast<int64_t>(job_.leaves.size()), shard_,
          [&](const Leaf& leaf) { return session_.layout.owner(leaf.index, before); },
          job_.tokens.size(1), shape.hidden, shape.compute_dtype);
      chain_.resize(hash_digits);
      auto chain = session_.world.receive(std::as_writable_bytes(std::span(chain_)),
                                          session_.layout.team_of(before).front(), chain_tag);
      wait_until([&] {
        if (session_.stop.requested()) throw Stopped();
        return chain.done();
      });
    }
    hidden_ = inbox->take(session_.stop);
  }

  void send_outputs() {
    const int next = shard_ + 1;
    if (!sequential() || next == session_.layout.shards()) return;
    const auto scope = session_.timer.measure(Phase::send);
    BoundaryOutbox outbox(session_.world);
    for (size_t i = 0; i < owned_.size(); ++i)
      outbox.send(hidden_[i], owned_[i].index, static_cast<int64_t>(job_.leaves.size()), next,
                  session_.layout.owner(owned_[i].index, next));
    std::vector<Request> chains;
    if (leads())
      for (const int rank : session_.layout.team_of(next))
        chains.push_back(session_.world.send(std::as_bytes(std::span(chain_)), rank, chain_tag));
    outbox.finish(session_.stop);
    for (auto& chain : chains) chain.wait();
  }

  void replay(int64_t layer, BlockWeights weights) {
    const PhaseSeconds before = session_.timer.seconds();
    finish_commit();
    LayerRecord record;
    const std::string prefix = session_.model.block_prefix(layer);
    agree(team_, [&] {
      const auto scope = session_.timer.measure(Phase::read);
      record = read_layer(session_.directory.job(session_.config.name).layer(layer));
    });
    if (sequential()) {
      for (const auto& [name, linear] : record.linears)
        weights.at(name.substr(prefix.size())) = linear.weight;
      for (const auto& [name, tensor] : record.changed)
        weights.at(name.substr(prefix.size())) = tensor;
    }
    {
      const auto scope = session_.timer.measure(Phase::forward);
      forward_leaves(session_.model.block(layer), weights, hidden_);
    }
    if (any(team_, session_.stop.requested())) throw Stopped();
    chain_ = job_.committed.at(static_cast<size_t>(layer))->chain;
    report(layer, record.linears, true, before);
  }

  void compress(int64_t layer, BlockWeights weights) {
    const PhaseSeconds before = session_.timer.seconds();
    const LayerWork work{session_.model,      session_.config,     team_,
                         session_.stop,       session_.timer,      session_.context,
                         job_.tokens.numel(), session_.leaf_memory};
    const auto shared = std::make_shared<LayerRecord>();
    LayerRecord& record = *shared;
    record.layer = layer;
    record.job_id = job_.id;
    const std::string prefix = session_.model.block_prefix(layer);
    for (const auto& [name, tensor] : weights) {
      const auto bytes = bytes_of(tensor);
      if (leads())
        record.source_hashes[prefix + name] = Hasher().bytes(bytes.data(), bytes.size()).digest();
    }
    CompressedBlock block = compress_layer(work, layer, std::move(weights), hidden_);
    record.linears = std::move(block.linears);
    record.changed = std::move(block.changed);
    const auto scope = session_.timer.measure(Phase::write);
    finish_commit();
    std::string chain(hash_digits, '0');
    agree(team_, [&] {
      if (!leads()) return;
      chain = chain_hash(job_.id, sequential() ? chain_ : "", record.content_hash());
      const fs::path path = session_.directory.job(session_.config.name).layer(layer);
      commit_ = std::async(std::launch::async, [shared, path, chain] {
        kernels::use_one_library_thread();
        write_layer(path, *shared, chain);
      });
    });
    team_.broadcast(std::as_writable_bytes(std::span(chain)), 0);
    chain_ = chain;
    report(layer, record.linears, false, before);
  }

  /// Waits for the layer that is being written: one at a time, in order. Collective over the team.
  void finish_commit() {
    const auto scope = session_.timer.measure(Phase::write);
    agree(team_, [&] {
      if (commit_.valid()) commit_.get();
    });
  }

  void report(int64_t layer, const std::map<std::string, CompressedLinear>& linears, bool replayed,
              const PhaseSeconds& before) {
    if (!leads()) return;
    LayerReport report;
    report.layer = layer;
    report.replayed = replayed;
    report.seconds = session_.timer.seconds();
    for (size_t phase = 0; phase < before.size(); ++phase) report.seconds[phase] -= before[phase];
    for (const auto& [name, linear] : linears)
      report.linears.push_back({name.substr(0, name.rfind(".weight")), linear.weight.size(0),
                                linear.weight.size(1), linear.bits, linear.group_size,
                                linear.relative_error, linear.nearest_error, linear.loss,
                                linear.damping, linear.damping_retries, linear.dead_columns});
    reports_.push_back(std::move(report));
  }

  const Session& session_;
  const Job& job_;
  int shard_;
  Communicator team_;
  std::vector<Leaf> owned_;
  std::vector<at::Tensor> hidden_;
  std::string chain_;
  std::vector<LayerReport> reports_;
  std::future<void> commit_;  // writes a layer while the next is compressed; ends before the run
};

}  // namespace

std::vector<LayerReport> compress_shard(const Session& session, const Job& job,
                                        std::optional<BoundaryInbox> inbox) {
  ShardRun run(session, job);
  try {
    return run.run(std::move(inbox));
  } catch (const AgreedError& error) {
    if (session.layout.shards() == 1) throw;
    // Other shards do not know of it: one rank of this team ends the job for all, the rest wait for
    // that.
    if (run.leads()) throw Error(error.code(), error.what());
    std::this_thread::sleep_for(std::chrono::seconds(60));
    throw;
  }
}

}  // namespace selfcal
