#include "pipeline/open_jobs.hpp"

#include <algorithm>
#include <map>

#include "comm/agreement.hpp"
#include "pipeline/run_plan.hpp"
#include "pipeline/sizes.hpp"
#include "pipeline/text_losses.hpp"
#include "stages/kernels/numeric_kind.hpp"

namespace selfcal {
namespace {

using OpenModels = std::map<std::pair<fs::path, std::string>, std::shared_ptr<const Model>>;

JobToPlan open_job(const RunConfig& given, int sharing, OpenModels& models,
                   const RunEnvironment& environment) {
  auto& model = models[{given.model, given.dtype}];
  if (!model) model = open_model(given.model, given.dtype, environment.context);
  const RunConfig config = resolve_by(*model, given);
  const auto& calibration = config.calibration;
  if (calibration.source == CalibrationSource::tokens && !fs::exists(calibration.tokens_path))
    fail(ExitCode::data, "calibration.tokens: {}: no such file", calibration.tokens_path);
  Machine machine;
  machine.device_memory = environment.device_memory;
  return {config, sizes_of(*model), machine, sharing};
}

}  // namespace

RunConfig resolve_by(const Model& model, const RunConfig& given) {
  RunConfig config = resolve(given, model.shape());
  config.evaluate = with_text_size(config.evaluate, model.shape());
  check_linears(config, all_linears(model));
  return config;
}

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
  const auto plans = plan_run(jobs, environment.world.size());
  const bool ahead = write_ahead(plans);
  std::deque<OpenedJob> opened;
  for (const auto& [config, sizes, plan, while_writing] : plans)
    opened.push_back(
        {config, of_jobs[opened.size()], plan, ahead ? while_writing : std::nullopt, plan.layout});
  return opened;
}

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

LeafMemory leaf_memory(const Plan& plan) {
  return plan.keeps_states ? LeafMemory::keep : LeafMemory::recompute;
}

uint64_t planned_memory(const OpenedJob& job, int rank) {
  uint64_t bytes = job.plan.ranks[static_cast<size_t>(rank)].memory;
  if (job.while_writing && rank < job.while_writing->layout.ranks())
    bytes = std::max(bytes, job.while_writing->ranks[static_cast<size_t>(rank)].memory);
  return bytes;
}

}  // namespace selfcal
