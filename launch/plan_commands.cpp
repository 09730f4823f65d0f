// plan and config-help: what can be asked without running anything.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <map>
#include <memory>
#include <optional>
#include <tuple>
#include <utility>

#include "base/gpu_module.hpp"
#include "comm/mpi/mpi_backend.hpp"
#include "launch/commands.hpp"
#include "launch/compute.hpp"
#include "pipeline/config.hpp"
#include "pipeline/devices.hpp"
#include "pipeline/disk_rates.hpp"
#include "pipeline/network_rates.hpp"
#include "pipeline/open_jobs.hpp"
#include "pipeline/run_plan.hpp"
#include "pipeline/sizes.hpp"
#include "stages/generate/micro_batch.hpp"

namespace selfcal {
namespace {

struct PlanOptions {
  fs::path config;
  std::vector<std::string> settings;
  int ranks = 0;  // 0: those that were started, or 1
  int ranks_a_node = 0;
  std::string device;
  bool json = false;
  bool scaling = false;
};

/// What a plan that was started on several ranks knows besides: they measure their speed at the
/// same time, and the network between them.
struct Launched {
  std::optional<Communicator> ranks;
  std::optional<NetworkRates> network;
  CoresOfNode cores;
};

/// The model's folder, or what its config.json alone tells.
std::unique_ptr<Model> open_for_plan(const RunConfig& config, kernels::Context context) {
  const fs::path file = config.model / "config.json";
  const bool alone =
      fs::is_directory(config.model) && fs::exists(file) &&
      std::ranges::none_of(fs::directory_iterator(config.model), [](const auto& entry) {
        const std::string name = entry.path().filename().string();
        return name.ends_with(".safetensors") || name.ends_with(".bin") ||
               name.ends_with(".index.json");
      });
  return alone ? model_of_config(file, config.dtype, context)
               : open_model(config.model, config.dtype, context);
}

/// Ranks of the run that share a machine like this one: as many as were started on a node, where
/// there are several nodes.
int ranks_together(const PlanOptions& options, const Launched& launched) {
  if (options.ranks_a_node > 0) return options.ranks_a_node;
  if (options.scaling) return 1;
  const bool several_nodes = launched.ranks && launched.cores.ranks < launched.ranks->size();
  return several_nodes ? launched.cores.ranks : options.ranks;
}

/// Those of them that share the cores of one. (Ranks that were started and bound have their own.)
int ranks_on_the_same_cores(const PlanOptions& options, const Launched& launched) {
  const int together = ranks_together(options, launched);
  return launched.ranks
             ? std::max(1, together * launched.cores.sharing_ranks / launched.cores.ranks)
             : together;
}

Machine machine_of(const PlanOptions& options, const Launched& launched, const RunConfig& config,
                   const Model& model, kernels::Context context) {
  if (!options.device.empty()) return device_machine(options.device, model.shape().compute_dtype);
  Machine machine = this_machine(ranks_together(options, launched));
  // (A rank that is bound to its cores sees no others.)
  machine.cores = std::max(machine.cores, launched.cores.of_all_ranks);
  if (config.device != DeviceChoice::cpu) machine.device_memory = gpu_memory();
  if (launched.ranks) launched.ranks->barrier();
  machine.rates = measure_rates(context, model, config);
  if (launched.ranks) machine.rates = slowest(*launched.ranks, machine.rates);
  const bool speaks = !launched.ranks || launched.ranks->rank() == 0;
  if (const auto disk = speaks ? measure_disk(config.output) : std::nullopt) {
    machine.disk = disk->bandwidth;
    machine.commit = disk->commit;
    machine.knows_disk = true;
  }
  if (launched.network) {
    machine.network = launched.network->bandwidth;
    machine.latency = launched.network->latency;
  }
  return machine;
}

std::string scaling_of(const PlanOptions& options, const RunConfig& config, const ModelSizes& sizes,
                       const Machine& machine) {
  std::vector<int> counts;
  for (int ranks = 1; ranks < options.ranks; ranks *= 2) counts.push_back(ranks);
  counts.push_back(options.ranks);
  return scaling_table(config, sizes, counts, machine);
}

/// The run as it would be on `ranks` ranks: of devices, or of nodes that are taken to be like this
/// machine, which is measured. A model folder with nothing but config.json will do. Of many jobs
/// the first is shown in full, then a line of each; the scaling is the first one's.
std::string text_of_plan(const PlanOptions& options, const Launched& launched) {
  const auto all_given = load_jobs(options.config, options.settings);
  // As many threads as a rank of the run has: two threads are not twice as fast as one.
  const Compute compute(all_given.front().threads, ranks_on_the_same_cores(options, launched));
  std::map<std::pair<fs::path, std::string>, std::unique_ptr<Model>> models;
  std::map<std::tuple<const Model*, int64_t, int64_t, int64_t, MethodName>, Machine> machines;
  std::vector<JobToPlan> jobs;
  for (const auto& given : all_given) {
    auto& model = models[{given.model, given.dtype}];
    if (!model) model = open_for_plan(given, compute.context());
    const RunConfig config = resolve_by(*model, given);
    // Jobs that differ in less have the same speed.
    const std::tuple kind(std::as_const(model).get(), config.calibration.micro_batch,
                          micro_batches(config.calibration), config.calibration.length,
                          config.method.name);
    if (!machines.contains(kind))
      machines[kind] = machine_of(options, launched, config, *model, compute.context());
    const ModelSizes sizes = sizes_of(*model);
    if (options.scaling) return scaling_of(options, config, sizes, machines[kind]);
    jobs.push_back({config, sizes, machines[kind], jobs_sharing(given, all_given)});
  }
  const auto planned = plan_run(jobs, options.ranks);
  return options.json ? to_json(planned) : to_text(planned);
}

void plan_alone(PlanOptions options) {
  options.ranks = std::max(1, options.ranks);
  std::fputs(text_of_plan(options, {}).c_str(), stdout);
}

/// Alone, or under mpirun or srun, where rank 0 speaks.
void plan(PlanOptions options) {
  if (is_alone()) return plan_alone(std::move(options));
  MpiSession session;
  const Communicator world = Communicator::world();
  if (world.size() == 1) return plan_alone(std::move(options));
  if (options.ranks == 0) options.ranks = world.size();
  const Launched launched{world, measure_network(world), cores_of_node(world)};
  const std::string text = text_of_plan(options, launched);
  if (world.rank() == 0) std::fputs(text.c_str(), stdout);
}

void add_plan(CLI::App& app) {
  auto* command =
      app.add_subcommand("plan", "ranks, memory and time of a run, without starting it");
  const auto options = std::make_shared<PlanOptions>();
  command->add_option("config", options->config, "YAML file (selfcal config-help lists its keys)")
      ->required();
  command->add_option("--set", options->settings,
                      "key=value on top of the file, as often as needed");
  command
      ->add_option("--ranks", options->ranks,
                   "of the run to plan (default: those that it is started on, which then measure "
                   "the network between them too)")
      ->check(CLI::Range(1, 1 << 20));
  command
      ->add_option(
          "--ranks-per-node", options->ranks_a_node,
          "ranks that share a machine like this one (default: as it was started on several "
          "nodes, else all)")
      ->check(CLI::Range(1, 1 << 20));
  command->add_option("--device", options->device,
                      "one a rank, at the published peaks of its data sheet: h100, h200 or a100");
  command->add_flag("--json", options->json, "for machines: rates, seconds, bytes");
  command->add_flag("--scaling", options->scaling,
                    "a table for 1, 2, 4 ... ranks up to --ranks, each on a machine like this one "
                    "(by the cost model: nothing is run)");
  command->callback([options] { plan(*options); });
}

}  // namespace

void add_plan_commands(CLI::App& app) {
  add_plan(app);
  auto* keys = app.add_subcommand("config-help",
                                  "every key of the configuration, with its default and range");
  const auto markdown = std::make_shared<bool>(false);
  keys->add_flag("--markdown", *markdown, "as the table of docs/config.md");
  keys->callback(
      [markdown] { std::fputs((*markdown ? config_markdown() : config_help()).c_str(), stdout); });
}

}  // namespace selfcal
