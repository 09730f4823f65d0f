#include "pipeline/compress.hpp"

#include <deque>
#include <map>
#include <nlohmann/json.hpp>

#include "base/freed_memory.hpp"
#include "base/log.hpp"
#include "comm/agreement.hpp"
#include "pipeline/calibration.hpp"
#include "pipeline/dense_boundaries.hpp"
#include "pipeline/finish.hpp"
#include "pipeline/host_solves.hpp"
#include "pipeline/outliers.hpp"
#include "pipeline/run_plan.hpp"
#include "pipeline/shard.hpp"
#include "stages/kernels/numeric_kind.hpp"
#include "storage/job_queue.hpp"
#include "storage/layer_scan.hpp"
#include "storage/run_lock.hpp"

namespace selfcal {
namespace {

/// All ranks must compute the same bits.
std::string agree_on_numeric_kind(const Communicator& world, const std::string& device_kind) {
  std::string mine = kernels::numeric_kind();
  if (!device_kind.empty()) mine += "; " + device_kind;
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

/// What is known of a job before it starts.
struct OpenedJob {
  RunConfig config;
  std::shared_ptr<const Model> model;
  Layout layout;
  LeafMemory leaf_memory;
  std::vector<RankPlan> ranks;
};

using OpenModels = std::map<std::pair<fs::path, std::string>, std::shared_ptr<const Model>>;

/// A job's configuration as resolved by its model, whose header is checked against it.
JobToPlan open_job(const RunConfig& given, int sharing, OpenModels& models,
                   const RunEnvironment& environment) {
  auto& model = models[{given.model, given.dtype}];
  if (!model) model = open_model(given.model, given.dtype, environment.context);
  const RunConfig config = resolve(given, model->shape());
  const auto& calibration = config.calibration;
  if (calibration.source == CalibrationSource::tokens && !fs::exists(calibration.tokens_path))
    fail(ExitCode::data, "calibration.tokens: {}: no such file", calibration.tokens_path);
  check_linears(config, all_linears(*model));
  Machine machine;
  machine.device_memory = environment.device_memory;
  return {config, sizes_of(*model), machine, sharing};
}

/// Independent; what is wrong with a job names it where there are several.
std::deque<OpenedJob> open_jobs(const std::vector<RunConfig>& given,
                                const RunEnvironment& environment) {
  OpenModels models;
  std::vector<JobToPlan> jobs;
  std::vector<std::shared_ptr<const Model>> of_jobs;
  for (const auto& config : given) try {
      jobs.push_back(open_job(config, jobs_sharing(config, given), models, environment));
      of_jobs.push_back(models.at({config.model, config.dtype}));
    } catch (const Error& error) {
      if (given.size() == 1) throw;
      fail(error.code(), "job {}: {}", config.name, error.what());
    }
  std::deque<OpenedJob> opened;
  for (auto& [config, sizes, plan] : plan_run(jobs, environment.world.size()))
    opened.push_back({config, of_jobs[opened.size()], plan.layout,
                      plan.keeps_states ? LeafMemory::keep : LeafMemory::recompute, plan.ranks});
  return opened;
}

/// Jobs whose flows pass through the shards one behind the other, before any of them is finished.
struct Batch {
  std::vector<std::vector<Job*>> flows;
};

/// Dense jobs with one forward form a flow and a batch; sequential jobs are flows of one, all in
/// one batch where there are shards to keep busy.
std::vector<Batch> plan_batches(std::deque<Job>& jobs, int shards) {
  std::vector<Batch> batches;
  std::map<std::string, size_t> by_key;
  for (auto& job : jobs) {
    const bool alone = job.sequential() && shards == 1;
    const std::string key = job.sequential() ? "sequential" : forward_key(job.session.config);
    const auto [found, fresh] = by_key.try_emplace(key, batches.size());
    if (alone || fresh) batches.emplace_back();
    auto& flows = batches[alone ? batches.size() - 1 : found->second].flows;
    if (flows.empty() || job.sequential()) flows.emplace_back();
    flows.back().push_back(&job);
  }
  return batches;
}

/// For the report of jobs that share a forward.
std::string describe_sharing(const std::vector<Job*>& jobs) {
  if (jobs.size() == 1) return {};
  std::vector<std::string> names;
  for (const Job* job : jobs) names.push_back(job->name());
  return fmt::format(
      "forward and statistics of a layer shared by {} jobs ({}), which have equal parts of that "
      "time; a factor counts with the first job that asks for it; searches, solves and writes are "
      "each job's own, and so are the forward and statistics of AWQ with scale_loss module",
      jobs.size(), fmt::join(names, ", "));
}

class Run {
 public:
  Run(const std::vector<RunConfig>& given, const RunEnvironment& environment)
      : environment_(environment), world_(environment.world), progress_(world_.rank() == 0) {
    agree(world_, [&] { opened_ = open_jobs(given, environment); });
    const std::string kind = agree_on_numeric_kind(world_, environment.device_kind);
    std::vector<RunConfig> configs;
    for (const auto& job : opened_) configs.push_back(job.config);
    const RunConfig& first = configs.front();
    directory_.emplace(first.output);
    agree(world_, [&] {
      if (world_.rank() != 0) return;
      make_folder(directory_->path());
      lock_ = std::make_unique<RunLock>(directory_->lock());
      directory_->prepare(to_yaml(configs), {"layout", "threads", "export", "evaluate"});
      make_folder(directory_->logs());
      for (const auto& config : configs) make_folder(directory_->job(config.name).layers());
    });
    progress_.log_to(directory_->logs() / fmt::format("rank-{:04}.jsonl", world_.rank()),
                     world_.rank());
    team_.emplace(world_.split(layout().shard_of(world_.rank())));
    const auto count = static_cast<int64_t>(opened_.size());
    for (const auto& job : opened_)
      jobs_.push_back(
          {.session = {job.config, *job.model, world_, job.layout, *directory_, environment.stop,
                       environment.context, kind, timer_, progress_, job.leaf_memory, count,
                       job.ranks[static_cast<size_t>(world_.rank())].memory},
           .number = static_cast<int64_t>(jobs_.size())});
    for (Job& job : jobs_)
      for (const Job& other : jobs_)
        if (job.beside == nullptr &&
            differ_in_propagation_only(job.session.config, other.session.config))
          job.beside = &other;
    log::info("{}: {} layers; {}{}; {} thread{} a rank", first.model.string(),
              opened_.front().model->shape().layers,
              count > 1 ? fmt::format("{} jobs; ", count) : std::string(), layout().describe(),
              environment.context.threads->size(),
              environment.context.threads->size() == 1 ? "" : "s");
    if (environment.context.device.solver != nullptr)
      for (const auto& job : opened_) log_host_solves(job.config, all_linears(*job.model));
  }

  void calibrate() {
    for (auto& job : jobs_) {
      attempt({&job}, [&] { prepare_calibration(job.session, [](const auto&, const auto&) {}); });
    }
    throw_first_failure();
  }

  void compress() try {
    agree(world_, [&] {
      if (world_.rank() == 0) write_queue(directory_->queue(), queue());
    });
    for (auto& batch : plan_batches(jobs_, layout().shards())) {
      stop_together(world_, environment_.stop);
      process(batch);
    }
    throw_first_failure();
  } catch (const Stopped&) {
    running_.clear();
    show_queue();
    throw;
  }

 private:
  const Layout& layout() const { return opened_.front().layout; }

  void process(const Batch& batch) {
    std::vector<Flow> flows;
    std::deque<DenseBoundaries> boundaries;
    Handover handover(world_, environment_.stop);
    bool stopped = false;
    try {
      for (const auto& jobs : batch.flows) {
        attempt(jobs, [&] {
          Flow flow{jobs};
          prepare(flow, boundaries);
          if (!flow.jobs.empty()) flows.push_back(std::move(flow));
        });
        time_.charge(jobs);
      }
      compress_flows(*team_, flows, handover, time_, [&](const Flow& flow) {
        for (const Job* job : flow.jobs) running_.insert(job);
        show_queue();
      });
      for (auto& sent : boundaries) sent.finish();
    } catch (const Stopped&) {
      stopped = true;
    }
    // Teams do not wait for each other before this.
    if (any(world_, stopped)) {
      world_.drop_messages([&] {
        return handover.next.all_sent() &&
               std::ranges::all_of(boundaries, &DenseBoundaries::all_sent);
      });
      throw Stopped();
    }
    return_freed_memory();
    share_failures(flows);
    show_queue();
    for (const auto& flow : flows)
      for (Job* job : flow.jobs) {
        if (!job->failure) attempt({job}, [&] { finish_job(*job, time_, losses_); });
        job->finished = !job->failure;
        job->calibration = {};
        running_.erase(job);
        show_queue();
      }
    put_reports_beside();
  }

  /// The report of each job that is done gets its section about the one that differs in propagation
  /// only, once that is done too.
  void put_reports_beside() {
    for (Job& job : jobs_) {
      if (job.beside == nullptr || !job.finished || !job.beside->finished) continue;
      if (!besides_.insert(&job).second) continue;
      attempt({&job}, [&] {
        agree(world_, [&] {
          if (world_.rank() == 0)
            put_beside(directory_->job(job.name()).report(),
                       directory_->job(job.beside->name()).report());
        });
      });
    }
  }

  /// Calibration, identity and what is on disk of each job; jobs that are finished leave the flow.
  void prepare(Flow& flow, std::deque<DenseBoundaries>& boundaries) {
    Job& front = flow.front();
    if (jobs_.size() > 1)
      for (const Job* job : flow.jobs)
        log::info("job {} of {}: {}", job->number + 1, jobs_.size(), job->name());
    front.leaves = cut_leaves(front.session.config.calibration.sequences,
                              front.session.config.calibration.length,
                              front.session.config.calibration.micro_batch);
    auto& dense = boundaries.emplace_back(front.session, front.leaves);
    front.calibration = prepare_calibration(
        front.session, [&](const MicroBatch& batch, const Generator& generator) {
          dense.send_sampled(batch, generator);
        });
    const std::string shared = describe_sharing(flow.jobs);
    for (Job* job : flow.jobs) {
      if (job != &front) {
        job->leaves = front.leaves;
        job->calibration.content_hash = front.calibration.content_hash;
        job->calibration.tokens = front.calibration.tokens;
      }
      job->shared = shared;
      job->id = job_id(job->session, front.calibration.content_hash);
      attempt({job}, [&] {
        job->committed = scan_committed(job->session, job->id);
        agree(world_, [&] { job->finished = world_.rank() == 0 && is_finished(*job); });
        job->finished = any(world_, job->finished);
      });
      if (job->finished) log::info("job {}: done by an earlier run", job->name());
    }
    std::erase_if(flow.jobs, [](const Job* job) { return job->finished || job->failure; });
    if (flow.jobs.empty()) return;
    const bool needed =
        std::ranges::any_of(flow.jobs, [](const Job* job) { return !job->complete(); });
    if (needed) {
      weigh_blocks(jobs_, front);
      time_.charge(flow.jobs);
      dense.send_rest(front.calibration.tokens);
    }
    flow.inbox = dense.take_inbox();
  }

  /// What teams have agreed on becomes known to all; of several failures the first rank's counts.
  void share_failures(const std::vector<Flow>& flows) {
    nlohmann::json mine = nlohmann::json::array();
    for (const auto& flow : flows)
      for (const Job* job : flow.jobs)
        if (job->failure)
          mine.push_back({job->number, static_cast<int>(job->failure->code), job->failure->text});
    const std::string text = mine.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
    for (const auto& message : world_.all_gather(std::as_bytes(std::span(text)))) {
      const auto* begin = reinterpret_cast<const char*>(message.data());
      for (const auto& entry : nlohmann::json::parse(begin, begin + message.size()))
        note_failure(jobs_[entry[0].get<size_t>()],
                     {static_cast<ExitCode>(entry[1].get<int>()), entry[2].get<std::string>()});
    }
  }

  /// Runs what all ranks come out of alike: an agreed error fails the jobs.
  void attempt(const std::vector<Job*>& jobs, const std::function<void()>& work) try {
    work();
  } catch (const AgreedError& error) {
    for (Job* job : jobs) note_failure(*job, {error.code(), error.what()});
    show_queue();
  }

  void note_failure(Job& job, const JobFailure& failure) {
    if (std::ranges::find(failed_, &job) != failed_.end()) return;
    job.failure = failure;
    failed_.push_back(&job);
    if (jobs_.size() > 1) log::warn("job {} failed: {}", job.name(), failure.text);
  }

  void throw_first_failure() const {
    if (failed_.empty()) return;
    const Job& first = *failed_.front();
    if (jobs_.size() == 1) throw AgreedError(first.failure->code, first.failure->text);
    throw AgreedError(first.failure->code,
                      fmt::format("{} of {} jobs failed; the first, {}: {}", failed_.size(),
                                  jobs_.size(), first.name(), first.failure->text));
  }

  std::vector<QueuedJob> queue() const {
    std::vector<QueuedJob> list;
    for (const auto& job : jobs_) {
      const JobState state = job.failure               ? JobState::failed
                             : job.finished            ? JobState::done
                             : running_.contains(&job) ? JobState::running
                                                       : JobState::waiting;
      list.push_back({job.name(), state, job.id,
                      job.failure ? static_cast<int>(job.failure->code) : 0,
                      job.failure ? job.failure->text : std::string()});
    }
    return list;
  }

  /// A queue that cannot be written ends nothing: the layer files are the truth.
  void show_queue() {
    if (world_.rank() != 0) return;
    try {
      write_queue(directory_->queue(), queue());
    } catch (const Error& error) {
      progress_.event("error", {{"text", error.what()}});
    }
  }

  const RunEnvironment& environment_;
  const Communicator& world_;
  PhaseTimer timer_{
      [this](Phase phase) { world_.activity().enter(phase_names[static_cast<size_t>(phase)]); }};
  TimeAccount time_{timer_};
  Progress progress_;
  std::deque<OpenedJob> opened_;
  std::optional<RunDirectory> directory_;
  std::unique_ptr<RunLock> lock_;
  std::optional<Communicator> team_;
  std::deque<Job> jobs_;
  CalibrationLosses losses_;
  std::set<const Job*> running_;
  std::set<const Job*> besides_;    // whose reports have their section about another job
  std::vector<const Job*> failed_;  // in the order that they did
};

}  // namespace

void compress(const std::vector<RunConfig>& jobs, const RunEnvironment& environment) {
  Run(jobs, environment).compress();
}

void generate(const std::vector<RunConfig>& jobs, const RunEnvironment& environment) {
  Run(jobs, environment).calibrate();
}

}  // namespace selfcal
