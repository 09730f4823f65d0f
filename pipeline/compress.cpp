#include "pipeline/compress.hpp"

#include <deque>
#include <nlohmann/json.hpp>

#include "base/freed_memory.hpp"
#include "base/log.hpp"
#include "comm/agreement.hpp"
#include "pipeline/batches.hpp"
#include "pipeline/calibration.hpp"
#include "pipeline/dense_boundaries.hpp"
#include "pipeline/finish.hpp"
#include "pipeline/host_solves.hpp"
#include "pipeline/open_jobs.hpp"
#include "pipeline/outliers.hpp"
#include "pipeline/shard.hpp"
#include "pipeline/sizes.hpp"
#include "pipeline/writing_ahead.hpp"
#include "storage/job_queue.hpp"
#include "storage/run_lock.hpp"

namespace selfcal {
namespace {

class Run {
 public:
  Run(const std::vector<RunConfig>& given, const RunEnvironment& environment)
      : environment_(environment),
        world_(environment.world),
        crew_(world_),
        progress_(world_.rank() == 0) {
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
          {.session = {job.config, *job.model, crew_, job.layout, *directory_, environment.stop,
                       environment.context, kind, timer_, progress_, leaf_memory(job.plan), count,
                       job.plan.sampled_at_once, planned_memory(job, world_.rank())},
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
    std::vector<Batch> batches = plan_batches(jobs_, layout().shards());
    compress_while_written(batches);
    for (const auto& batch : batches) {
      stop_together(world_, environment_.stop);
      process(batch);
    }
    put_reports_beside();
    throw_first_failure();
  } catch (const Stopped&) {
    running_.clear();
    show_queue();
    throw;
  }

 private:
  const Layout& layout() const { return opened_.front().layout; }

  /// Where generators have texts of later jobs to write they do so, and the compressors compress
  /// what is written meanwhile. When the last text is there all work on what is left in `batches`.
  void compress_while_written(std::vector<Batch>& batches) {
    std::vector<Job*> texts = texts_to_write(batches);
    if (texts.empty()) return;
    const int writer = layout().generators().front();
    const bool writes = world_.rank() >= writer;
    written_.emplace(world_, environment_.stop, writer, std::move(texts));
    part(writes);
    bool stopped = false;
    try {
      if (writes)
        written_->write([this](Job& job) { time_.charge(job); });
      else
        compress_what_is_written(batches);
    } catch (const Stopped&) {
      stopped = true;
    }
    if (any(world_, stopped)) {
      world_.drop_messages([&] { return written_->all_sent(); });
      throw Stopped();
    }
    join();
    drop_finished(batches);
  }

  /// Collective. A job of each calibration set that is still to be sampled; none where nothing
  /// could be compressed meanwhile.
  std::vector<Job*> texts_to_write(const std::vector<Batch>& batches) {
    std::vector<Job*> jobs;
    if (!opened_.front().while_writing) return jobs;
    std::set<std::string> keys;
    for (const auto& batch : batches)
      for (const auto& flow : batch.flows) {
        const RunConfig& config = flow.front()->session.config;
        if (config.calibration.source == CalibrationSource::self &&
            keys.insert(forward_key(config)).second)
          jobs.push_back(flow.front());
      }
    std::vector<int32_t> there(jobs.size(), 0);
    agree(world_, [&] {
      if (world_.rank() != 0) return;
      for (size_t i = 0; i < jobs.size(); ++i) there[i] = is_sampled(jobs[i]->session) ? 1 : 0;
    });
    world_.broadcast(std::as_writable_bytes(std::span(there)), 0);
    std::vector<Job*> open;
    for (size_t i = 0; i < jobs.size(); ++i)
      if (!there[i]) open.push_back(jobs[i]);
    const Job* first = batches.front().flows.front().front();
    if (std::ranges::all_of(open, [&](const Job* job) { return job == first; })) open.clear();
    return open;
  }

  /// From now on this rank works with those of its kind alone.
  void part(bool writes) {
    crew_ = world_.split(writes ? 1 : 0);
    for (auto& job : opened_)
      job.layout = writes ? job.layout.of_generators() : job.layout.of_compressors();
    for (auto& job : jobs_)
      job.session.leaf_memory =
          leaf_memory(*opened_[static_cast<size_t>(job.number)].while_writing);
    team_.emplace(crew_.split(layout().shard_of(crew_.rank())));
  }

  /// From now on all ranks work together again; the compressors tell what has come of which job.
  void join() {
    crew_ = world_;
    losses_ = {};  // the generators have none
    for (auto& job : opened_) job.layout = job.plan.layout;
    team_.emplace(world_.split(layout().shard_of(world_.rank())));
    std::vector<int32_t> finished;
    for (const auto& job : jobs_) finished.push_back(job.finished ? 1 : 0);
    world_.all_reduce(std::span(finished), ReduceOp::max);
    for (auto& job : jobs_) {
      job.session.leaf_memory = leaf_memory(opened_[static_cast<size_t>(job.number)].plan);
      job.finished = finished[static_cast<size_t>(job.number)] != 0;
      job.block_sparsity.clear();  // the generators have none: what was counted is read again
    }
    share_failures();
  }

  /// On the compressors, until the last text is there: flow after flow, with several shards all
  /// together that can start.
  void compress_what_is_written(std::vector<Batch>& batches) {
    const auto ready = [&](const std::vector<Job*>& flow) {
      return written_->ready(*flow.front());
    };
    while (true) {
      const auto& flows = batches.front().flows;
      if (!ready(flows.front())) log::info("{} waits for its text", flows.front().front()->name());
      written_->receive(crew_, !ready(flows.front()));
      if (written_->whole()) return;
      const auto end = std::ranges::find_if_not(flows, ready);
      if (end == flows.begin()) continue;
      process({{flows.begin(), end}});
      drop_finished(batches);
    }
  }

  void process(const Batch& batch) {
    std::vector<Flow> flows;
    std::deque<DenseBoundaries> boundaries;
    Handover handover(crew_, environment_.stop);
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
    if (any(crew_, stopped)) {
      crew_.drop_messages([&] {
        return handover.next.all_sent() &&
               std::ranges::all_of(boundaries, &DenseBoundaries::all_sent);
      });
      throw Stopped();
    }
    return_freed_memory();
    share_failures();
    show_queue();
    for (const auto& flow : flows)
      for (Job* job : flow.jobs) {
        if (!job->failure) attempt({job}, [&] { finish_job(*job, time_, losses_); });
        job->finished = !job->failure;
        job->calibration = {};
        running_.erase(job);
        show_queue();
      }
  }

  /// The report of each job that is done gets its section about the one that differs in propagation
  /// only, if that is done too.
  void put_reports_beside() {
    for (Job& job : jobs_) {
      if (job.beside == nullptr || !job.finished || !job.beside->finished) continue;
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
    std::optional<Calibration> written;
    if (written_) written = written_->take(crew_, front);
    front.calibration =
        written ? std::move(*written)
                : prepare_calibration(front.session,
                                      [&](const MicroBatch& batch, const Generator& generator) {
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
        agree(crew_, [&] { job->finished = crew_.rank() == 0 && is_finished(*job); });
        job->finished = any(crew_, job->finished);
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
  void share_failures() {
    nlohmann::json mine = nlohmann::json::array();
    for (const auto& job : jobs_)
      if (job.failure)
        mine.push_back({job.number, static_cast<int>(job.failure->code), job.failure->text});
    const std::string text = mine.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
    for (const auto& message : crew_.all_gather(std::as_bytes(std::span(text)))) {
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
  Communicator crew_;  // the ranks that work together now: all, or those of this rank's kind
  PhaseTimer timer_{
      [this](Phase phase) { world_.activity().enter(phase_names[static_cast<size_t>(phase)]); }};
  TimeAccount time_{timer_};
  Progress progress_;
  std::deque<OpenedJob> opened_;
  std::optional<RunDirectory> directory_;
  std::unique_ptr<RunLock> lock_;
  std::optional<Communicator> team_;
  std::deque<Job> jobs_;
  std::optional<WritingAhead> written_;
  TextLosses losses_;
  std::set<const Job*> running_;
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
