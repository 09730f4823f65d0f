#include "pipeline/shard.hpp"

#include <ATen/ATen.h>

#include <algorithm>
#include <future>

#include "base/freed_memory.hpp"
#include "base/hash.hpp"
#include "pipeline/block_reader.hpp"
#include "pipeline/embedding.hpp"
#include "pipeline/layer_compressor.hpp"
#include "pipeline/tensor_message.hpp"
#include "pipeline/timed_agreement.hpp"
#include "storage/layer_scan.hpp"

namespace selfcal {
namespace {

constexpr size_t hash_digits = 32;

/// "job 2 of 6 (gptq-t0.8): compress"
std::string heading(const Flow& flow) {
  const int64_t of = flow.front().session.jobs;
  if (of == 1) return "compress";
  if (flow.jobs.size() == 1)
    return fmt::format("job {} of {} ({}): compress", flow.front().number + 1, of,
                       flow.front().name());
  return fmt::format("{} of {} jobs ({} ...): compress", flow.jobs.size(), of, flow.front().name());
}

class FlowRun {
 public:
  FlowRun(const Communicator& team, Flow& flow, TimeAccount& time, Handover& handover)
      : session_(flow.front().session),
        flow_(flow),
        team_(team),
        time_(time),
        before_(handover.before),
        next_(handover.next),
        shard_(session_.layout.shard_of(session_.world.rank())) {
    for (const auto& leaf : flow.front().leaves)
      if (session_.layout.owner(leaf.index, shard_) == session_.world.rank())
        owned_.push_back(leaf);
  }

  void run() {
    if (std::ranges::all_of(flow_.jobs, [](const Job* job) { return job->complete(); })) {
      attempt_all([&] { read_outcomes(); });
    } else if (!sequential()) {
      compute();
    } else {
      const bool first = shard_ == 0, last = shard_ + 1 == session_.layout.shards();
      if (!first) take_note();
      if (!flow_.front().failure) compute();
      if (!last) hand_over();
    }
    time_.charge(flow_.jobs);
  }

 private:
  bool sequential() const { return flow_.front().sequential(); }
  /// The rank that reads and writes for its team.
  bool leads() const { return team_.rank() == 0; }
  int64_t first_layer() const { return session_.layout.first_layer(shard_); }
  int64_t end_layer() const { return session_.layout.first_layer(shard_ + 1); }

  /// An intact file whose chain is what this run comes to: with sequential propagation, only if all
  /// before it are too.
  bool is_committed(const Job& job, int64_t layer) const {
    const auto& header = job.committed.at(static_cast<size_t>(layer));
    return header && follows(*header, sequential() ? chain_ : "");
  }

  /// A job that is whole on disk: nothing is computed.
  void read_outcomes() {
    for (Job* job : flow_.jobs)
      for (int64_t layer = first_layer(); layer < end_layer(); ++layer)
        report(*job, layer, read_committed(*job, layer, false), true, job->seconds);
  }

  void take_note() {
    Job& job = flow_.front();
    const JobNote note = before_.note_of(job);
    stop_together(team_, session_.stop);
    if (note.code != 0)
      job.failure = {static_cast<ExitCode>(note.code), note.error.data()};
    else
      chain_.assign(note.chain.begin(), note.chain.end());
  }

  void hand_over() {
    const Job& job = flow_.front();
    JobNote note;
    note.job = job.number;
    if (job.failure) {
      note.code = static_cast<int64_t>(job.failure->code);
      job.failure->text.copy(note.error.data(), note.error.size() - 1);
    } else {
      chain_.copy(note.chain.data(), note.chain.size());
    }
    if (leads()) next_.tell(job, note);
    if (job.failure) return;
    next_.finish();
    stop_together(team_, session_.stop);
    next_.offer(job, owned_, std::move(hidden_));
  }

  void compute() {
    attempt_all([&] { run_layers(); });
    reader_.reset();
    if (std::ranges::all_of(flow_.jobs, [](const Job* job) { return job->failure.has_value(); }))
      attempt_all([&] { drop_inputs(); });
  }

  void run_layers() {
    expect_inputs();
    reader_.emplace(session_, team_, end_layer());
    session_.progress.start(heading(flow_), end_layer() - first_layer(), "layers");
    session_.progress.update(0);
    for (int64_t layer = first_layer(); layer < end_layer(); ++layer) {
      BlockWeights weights = reader_->read(layer);
      time_.charge(flow_.jobs);
      std::vector<Job*> fresh, committed;
      for (Job* job : flow_.jobs)
        if (!job->failure) (is_committed(*job, layer) ? committed : fresh).push_back(job);
      for (Job* job : committed) replay(*job, layer, weights);
      if (fresh.empty() && committed.empty()) return;
      if (fresh.empty())
        forward(layer, weights, committed);
      else
        compress(layer, std::move(weights), fresh);
      session_.progress.update(layer + 1 - first_layer());
    }
    finish_writing();
    session_.progress.finish();
  }

  /// Collective. Later shards begin while their leaves are on their way.
  void expect_inputs() {
    const Job& job = flow_.front();
    if (shard_ == 0) {
      for (auto& leaf : embed_together(team_, session_.model, session_.timer,
                                       rows_of(job.calibration.tokens, owned_)))
        hidden_.emplace_back(std::move(leaf));
    } else {
      LeafInbox& inbox = flow_.inbox ? *flow_.inbox : before_.ask(job, owned_);
      for (size_t i = 0; i < owned_.size(); ++i)
        hidden_.emplace_back([this, &inbox, i] { return take(inbox, i); });
    }
  }

  at::Tensor take(LeafInbox& inbox, size_t leaf) const {
    const auto waiting = session_.timer.measure(Phase::idle);
    return inbox.take(leaf).to(session_.model.device().memory);
  }

  /// What a failure has left on its way: who sends it waits until it is taken.
  void drop_inputs() {
    agree(team_, session_.timer, [&] {
      for (auto& leaf : hidden_) std::exchange(leaf, {}).get();
    });
  }

  LayerRecord read_committed(const Job& job, int64_t layer, bool rebuild_weights) {
    finish_writing();
    LayerRecord record;
    const auto scope = session_.timer.measure(Phase::read);
    agree(team_, session_.timer, [&] {
      record = read_layer(session_.directory.job(job.name()).layer(layer), rebuild_weights);
    });
    return record;
  }

  void replay(Job& job, int64_t layer, BlockWeights& weights) {
    const PhaseSeconds before = job.seconds;
    const LayerRecord record = read_committed(job, layer, sequential());
    if (sequential()) {
      const std::string prefix = session_.model.block_prefix(layer);
      for (const auto& [name, linear] : record.linears)
        weights.at(name.substr(prefix.size())) = linear.weight;
      for (const auto& [name, tensor] : record.changed)
        weights.at(name.substr(prefix.size())) = tensor;
      chain_ = job.committed.at(static_cast<size_t>(layer))->chain;
    }
    time_.charge(job);
    report(job, layer, record, true, before);
  }

  void forward(int64_t layer, const BlockWeights& weights, const std::vector<Job*>& jobs) {
    agree(team_, session_.timer, [&] {
      const auto scope = session_.timer.measure(Phase::forward);
      forward_leaves(session_.model.block(layer), place(weights, session_.model.device()), hidden_);
    });
    serve();
    stop_together(team_, session_.stop);
    time_.charge(jobs);
  }

  /// What must not wait for the end of a block. Collective over the team.
  void serve() {
    next_.poll();
    reader_->share_ahead();
  }

  LayerWork work_for(const Job& job) {
    return {session_.model,
            job.session.config,
            team_,
            session_.stop,
            session_.timer,
            pace_,
            session_.context,
            job.calibration.tokens.numel(),
            owned_,
            session_.leaf_memory,
            [this] { serve(); },
            [this] { freed_.bound(); },
            [this] { await_writing(); },
            job.block_sparsity};
  }

  void compress(int64_t layer, BlockWeights weights, const std::vector<Job*>& fresh) {
    std::map<std::string, std::string> sources;
    const std::string prefix = session_.model.block_prefix(layer);
    if (leads())
      for (const auto& [name, tensor] : weights) {
        const auto bytes = bytes_of(tensor);
        sources[prefix + name] = Hasher().bytes(bytes.data(), bytes.size()).digest();
      }
    if (flow_.jobs.size() == 1) {
      Job& job = *fresh.front();
      const PhaseSeconds before = job.seconds;
      note_pass(layer, 1);
      commit(job, layer, compress_layer(work_for(job), layer, std::move(weights), hidden_), sources,
             before);
    } else {
      compress_together(layer, weights, fresh, sources);
    }
  }

  /// One pass over the dense block for all jobs that can use its statistics; those of AWQ that try
  /// scales on whole modules have passes of their own.
  void compress_together(int64_t layer, const BlockWeights& weights, const std::vector<Job*>& fresh,
                         const std::map<std::string, std::string>& sources) {
    std::vector<Job*> sharing, apart;
    BlockNeeds needs;
    for (Job* job : fresh) {
      const auto needed = shared_needs(session_.model, job->session.config, layer);
      if (needed)
        for (const auto& [tap, of_tap] : *needed) needs[tap].add(of_tap);
      (needed ? sharing : apart).push_back(job);
    }
    HiddenStates inputs;
    if (!apart.empty()) inputs = hidden_;
    std::map<const Job*, PhaseSeconds> before;
    for (const Job* job : fresh) before[job] = job->seconds;

    note_pass(layer, static_cast<int64_t>(sharing.size()));
    BlockStatistics statistics =
        measure_block(work_for(*fresh.front()), layer, weights, needs, hidden_);
    for (const Job* job : sharing) expect_factors(work_for(*job), layer, weights, statistics);
    time_.charge(sharing.empty() ? fresh : sharing);
    for (Job* job : sharing)
      attempt({job}, [&] {
        commit(*job, layer, compress_measured(work_for(*job), layer, weights, statistics), sources,
               before[job]);
      });
    statistics = {};
    for (Job* job : apart)
      attempt({job}, [&] {
        note_pass(layer, 1);
        auto hidden = inputs;
        commit(*job, layer, compress_layer(work_for(*job), layer, weights, hidden), sources,
               before[job]);
      });
  }

  /// What a team agrees on fails these jobs, and no others.
  static void attempt(const std::vector<Job*>& jobs, const std::function<void()>& work) try {
    work();
  } catch (const AgreedError& error) {
    for (Job* job : jobs)
      if (!job->failure) job->failure = {error.code(), error.what()};
  }
  void attempt_all(const std::function<void()>& work) { attempt(flow_.jobs, work); }

  /// For machines: how many jobs a forward and its statistics are for.
  void note_pass(int64_t layer, int64_t jobs) {
    session_.progress.event("statistics", {{"layer", layer}, {"jobs", jobs}});
  }

  void commit(Job& job, int64_t layer, CompressedBlock block,
              const std::map<std::string, std::string>& sources, const PhaseSeconds& before) {
    LayerRecord record{layer, job.id, std::move(block.linears), std::move(block.changed), sources};
    finish_writing();
    if (job.failure) return;
    std::string chain(hash_digits, '0');
    {
      const auto scope = session_.timer.measure(Phase::write);
      agree(team_, session_.timer, [&] {
        if (leads()) chain = chain_hash(job.id, sequential() ? chain_ : "", record.content_hash());
      });
      team_.broadcast(std::as_writable_bytes(std::span(chain)), 0);
      if (sequential()) chain_ = chain;
    }
    time_.charge(job);
    report(job, layer, record, false, before);
    writing_ = &job;
    if (!leads()) return;
    written_ =
        std::async(std::launch::async, [path = session_.directory.job(job.name()).layer(layer),
                                        chain, record = std::move(record)]() mutable {
          kernels::use_one_library_thread();
          write_layer(path, std::move(record), chain);
        });
  }

  /// The layer before is not in memory while the widest statistics of this one are.
  void await_writing() {
    if (!written_.valid()) return;
    const auto scope = session_.timer.measure(Phase::write);
    written_.wait();
  }

  /// Waits for the layer that is being written while others are compressed: one at a time, and
  /// nothing else uses HDF5 meanwhile. What went wrong fails its job.
  void finish_writing() {
    if (!writing_) return;
    const auto scope = session_.timer.measure(Phase::write);
    attempt({std::exchange(writing_, nullptr)}, [&] {
      agree(team_, session_.timer, [&] {
        if (written_.valid()) written_.get();
      });
    });
  }

  void report(Job& job, int64_t layer, const LayerRecord& record, bool replayed,
              const PhaseSeconds& before) {
    if (!leads()) return;
    LayerReport report;
    report.layer = layer;
    report.replayed = replayed;
    report.seconds = job.seconds;
    for (size_t phase = 0; phase < before.size(); ++phase) report.seconds[phase] -= before[phase];
    for (const auto& [name, linear] : record.linears)
      report.linears.push_back(
          {name.substr(0, name.rfind(".weight")), linear.weight.size(0), linear.weight.size(1),
           linear.bits, linear.group_size, linear.relative_error, linear.nearest_error, linear.loss,
           linear.damping, linear.damping_retries, linear.dead_columns, linear.sparsity});
    job.layers.push_back(std::move(report));
  }

  const Session& session_;
  Flow& flow_;
  const Communicator& team_;
  TimeAccount& time_;
  ShardBefore& before_;
  NextShard& next_;
  int shard_;
  SolvePace pace_;
  std::vector<Leaf> owned_;
  HiddenStates hidden_;
  FreedMemory freed_;
  std::optional<BlockReader> reader_;
  std::string chain_;          // with sequential propagation
  Job* writing_ = nullptr;     // whose layer is being written
  std::future<void> written_;  // on the team's first rank
};

}  // namespace

void compress_flows(const Communicator& team, std::vector<Flow>& flows, Handover& handover,
                    TimeAccount& time, const std::function<void(const Flow&)>& on_start) {
  if (flows.empty()) return;
  for (auto& flow : flows) {
    on_start(flow);
    FlowRun(team, flow, time, handover).run();
  }
  handover.next.finish();
}

}  // namespace selfcal
