#include "pipeline/compress.hpp"

#include <ATen/ATen.h>

#include "base/hash.hpp"
#include "base/log.hpp"
#include "comm/agreement.hpp"
#include "pipeline/calibration.hpp"
#include "pipeline/finish.hpp"
#include "pipeline/plan.hpp"
#include "pipeline/shard.hpp"
#include "pipeline/tensor_message.hpp"
#include "stages/kernels/numeric_kind.hpp"
#include "storage/layer_scan.hpp"
#include "storage/run_lock.hpp"

namespace selfcal {
namespace {

/// All ranks must compute the same bits.
std::string agree_on_numeric_kind(const Communicator& world) {
  const std::string mine = kernels::numeric_kind();
  std::string first = mine;
  int64_t size = static_cast<int64_t>(first.size());
  world.broadcast(std::as_writable_bytes(std::span(&size, 1)), 0);
  first.resize(static_cast<size_t>(size));
  world.broadcast(std::as_writable_bytes(std::span(first)), 0);
  agree(world, [&] {
    if (mine != first)
      fail(ExitCode::config, "ranks would compute different bits: found {}, rank 0 has {}", mine,
           first);
  });
  return mine;
}

/// The dense forward that feeds later shards at once, and where its results wait.
class DenseBoundaries {
 public:
  DenseBoundaries(const Session& session, const std::vector<Leaf>& leaves)
      : session_(session), leaves_(leaves), outbox_(session.world, session.stop) {
    const int rank = session.world.rank(), shard = session.layout.shard_of(rank);
    needed_ = session.config.propagation == Propagation::dense && session.layout.shards() > 1;
    if (!needed_ || shard == 0) return;
    std::vector<Leaf> owned;
    for (const auto& leaf : leaves)
      if (session.layout.owner(leaf.index, shard) == rank) owned.push_back(leaf);
    inbox_.emplace(
        session.world, owned, static_cast<int64_t>(leaves.size()), shard,
        [&](const Leaf& leaf) { return session.layout.generator_of(leaf.micro_batch); },
        session.config.calibration.length, session.model.shape().hidden,
        session.model.shape().compute_dtype);
  }

  /// The leaves of a micro-batch that this rank has just sampled, through the generator's own
  /// weights.
  void send_sampled(const MicroBatch& batch, const Generator& generator) {
    if (!needed_) return;
    send(
        leaves_of({batch.index}), generator.outer_weights(),
        [&](int64_t layer) { return generator.block_weights(layer); }, batch.tokens,
        batch.index * session_.config.calibration.micro_batch);
    sent_.insert(batch.index);
  }

  /// What this rank has not sampled but is to send: all of a given set, and what an earlier run has
  /// sampled.
  void send_rest(const at::Tensor& tokens) {
    if (!needed_) return;
    std::set<int64_t> rest;
    for (const auto& leaf : leaves_)
      if (session_.layout.generator_of(leaf.micro_batch) == session_.world.rank() &&
          !sent_.contains(leaf.micro_batch))
        rest.insert(leaf.micro_batch);
    if (rest.empty()) return;
    send(
        leaves_of(rest), session_.model.read_outer(),
        [&](int64_t layer) { return session_.model.read_block(layer); }, tokens, 0);
  }

  std::optional<BoundaryInbox> take_inbox() { return std::exchange(inbox_, std::nullopt); }
  void finish() { outbox_.finish(); }

 private:
  std::vector<Leaf> leaves_of(const std::set<int64_t>& batches) const {
    std::vector<Leaf> chosen;
    for (const auto& leaf : leaves_)
      if (batches.contains(leaf.micro_batch)) chosen.push_back(leaf);
    return chosen;
  }

  void send(const std::vector<Leaf>& leaves, const OuterWeights& outer,
            const std::function<BlockWeights(int64_t)>& weights, const at::Tensor& tokens,
            int64_t first_row) {
    const auto scope = session_.timer.measure(Phase::forward);
    send_dense_boundaries(session_.model, outer, weights, session_.layout, leaves,
                          static_cast<int64_t>(leaves_.size()), tokens, first_row, outbox_);
  }

  const Session& session_;
  const std::vector<Leaf>& leaves_;
  bool needed_ = false;
  std::set<int64_t> sent_;
  BoundaryOutbox outbox_;
  std::optional<BoundaryInbox> inbox_;
};

std::string job_id(const Session& session, const Calibration& calibration) {
  return Hasher()
      .text(session.model.checkpoint().identity())
      .text(calibration.content_hash)
      .text(identity(session.config))
      .text(session.numeric_kind)
      .digest();
}

/// Collective: rank 0 scans, all know.
std::vector<std::optional<LayerHeader>> scan_committed(const Session& session,
                                                       const std::string& id) {
  std::vector<std::optional<LayerHeader>> committed(
      static_cast<size_t>(session.model.shape().layers));
  constexpr size_t digits = 32;
  std::string hashes(committed.size() * 2 * digits, '-');
  agree(session.world, [&] {
    if (session.world.rank() != 0) return;
    const JobDirectory folder = session.directory.job(session.config.name);
    remove_unfinished(folder.layers());
    const auto layers = scan_layers(folder, session.model.shape().layers, id);
    for (const auto& layer : layers) {
      if (layer.state == LayerState::other_job)
        fail(ExitCode::config,
             "{}; the model, the calibration set or the kind of machine has changed: choose "
             "another output",
             layer.problem);
      if (layer.state == LayerState::damaged)
        log::warn("{}; this layer will be compressed again", layer.problem);
      if (layer.state == LayerState::good)
        hashes.replace(static_cast<size_t>(layer.layer) * 2 * digits, 2 * digits,
                       layer.header.content_hash + layer.header.chain);
    }
    write_manifest(folder, id, layers);
  });
  session.world.broadcast(std::as_writable_bytes(std::span(hashes)), 0);
  for (size_t layer = 0; layer < committed.size(); ++layer) {
    const std::string both = hashes.substr(layer * 2 * digits, 2 * digits);
    if (both.front() == '-') continue;
    committed[layer] = LayerHeader{};
    committed[layer]->layer = static_cast<int64_t>(layer);
    committed[layer]->job_id = id;
    committed[layer]->content_hash = both.substr(0, digits);
    committed[layer]->chain = both.substr(digits);
  }
  return committed;
}

enum class Goal { calibration, everything };

void run(const RunConfig& given, const RunEnvironment& environment, Goal goal) {
  const Communicator& world = environment.world;
  PhaseTimer timer(
      [&](Phase phase) { world.activity().enter(phase_names[static_cast<size_t>(phase)]); });
  const auto start = std::chrono::steady_clock::now();
  RunConfig config = given;
  std::unique_ptr<Model> model;
  std::unique_ptr<Layout> layout;
  LeafMemory leaf_memory = LeafMemory::keep;
  agree(world, [&] {
    model = open_model(given.model, given.dtype, environment.context);
    config = resolve(given, model->shape());
    const auto& calibration = config.calibration;
    if (calibration.source == CalibrationSource::tokens && !fs::exists(calibration.tokens_path))
      fail(ExitCode::data, "calibration.tokens: {}: no such file", calibration.tokens_path);
    check_linears(config, all_linears(*model));
    const Plan plan = make_plan(config, sizes_of(*model), world.size(), Machine{});
    layout = std::make_unique<Layout>(plan.layout);
    leaf_memory = plan.keeps_states ? LeafMemory::keep : LeafMemory::recompute;
  });
  const std::string kind = agree_on_numeric_kind(world);
  const RunDirectory directory(config.output);
  std::unique_ptr<RunLock> lock;
  agree(world, [&] {
    if (world.rank() != 0) return;
    make_folder(directory.path());
    lock = std::make_unique<RunLock>(directory.lock());
    directory.prepare(to_yaml(config), {"layout", "threads", "export", "evaluate"});
    make_folder(directory.logs());
    make_folder(directory.job(config.name).layers());
  });
  Progress progress(world.rank() == 0);
  progress.log_to(directory.logs() / fmt::format("rank-{:04}.jsonl", world.rank()), world.rank());
  const Session session{
      config, *model, world,    *layout,     directory, environment.stop, environment.context,
      kind,   timer,  progress, leaf_memory, start};
  log::info("{}: {} layers; {}; {} thread{} a rank", config.model.string(), model->shape().layers,
            layout->describe(), environment.context.threads->size(),
            environment.context.threads->size() == 1 ? "" : "s");

  try {
    Job job;
    job.leaves = cut_leaves(config.calibration.sequences, config.calibration.length,
                            config.calibration.micro_batch);
    DenseBoundaries boundaries(session, job.leaves);
    const Calibration calibration =
        prepare_calibration(session, [&](const MicroBatch& batch, const Generator& generator) {
          boundaries.send_sampled(batch, generator);
        });
    if (goal == Goal::calibration) return;

    job.tokens = calibration.tokens;
    job.id = job_id(session, calibration);
    job.committed = scan_committed(session, job.id);
    boundaries.send_rest(job.tokens);
    auto layers = compress_shard(session, job, boundaries.take_inbox());
    boundaries.finish();
    finish_job(session, job, calibration, std::move(layers));
  } catch (const Stopped&) {
    // With one shard every stop is agreed on; teams of several shards do not wait for each other.
    if (layout->shards() == 1) throw AgreedStop();
    throw;
  }
}

}  // namespace

void compress(const RunConfig& config, const RunEnvironment& environment) {
  run(config, environment, Goal::everything);
}

void generate(const RunConfig& config, const RunEnvironment& environment) {
  run(config, environment, Goal::calibration);
}

}  // namespace selfcal
