// compress and generate: the commands that run on many ranks.
#include <CLI/CLI.hpp>
#include <functional>
#include <memory>
#include <optional>

#include "comm/agreement.hpp"
#include "comm/watchdog.hpp"
#include "launch/commands.hpp"
#include "launch/compute.hpp"
#include "launch/gpus.hpp"
#include "launch/on_ranks.hpp"
#include "pipeline/compress.hpp"

namespace selfcal {
namespace {

struct RunOptions {
  fs::path config;
  std::vector<std::string> settings;
  double max_hours = 0;
};

/// Calls `run` on all ranks.
void run_jobs(
    const RunOptions& options,
    const std::function<void(const std::vector<RunConfig>&, const RunEnvironment&)>& run) {
  on_ranks([&](const Communicator& world) {
    std::vector<RunConfig> jobs;
    agree(world, [&] { jobs = load_jobs(options.config, options.settings); });
    const Watchdog watchdog(world, static_cast<double>(jobs.front().layout.timeout));
    const SharedStop stop(
        world, StopSignal(options.max_hours > 0 ? std::optional(options.max_hours) : std::nullopt));
    const RunDevice chosen = choose_device(world, jobs.front().device);
    const Compute compute(jobs.front().threads, cores_of_node(world).sharing_ranks, chosen.device);
    const Communicator& ranks = chosen.ranks ? *chosen.ranks : world;
    run(jobs, {ranks, stop, compute.context(), chosen.kind, chosen.memory});
  });
}

void add_run_command(CLI::App& app, const char* name, const char* help,
                     void (*run)(const std::vector<RunConfig>&, const RunEnvironment&)) {
  auto* command = app.add_subcommand(name, help);
  const auto options = std::make_shared<RunOptions>();
  command->add_option("config", options->config, "YAML file (selfcal config-help lists its keys)")
      ->required();
  command->add_option("--set", options->settings,
                      "key=value on top of the file, as often as needed");
  command->add_option("--max-hours", options->max_hours,
                      "stop with a checkpoint after so long (exit code 75)");
  command->callback([options, run] { run_jobs(*options, run); });
}

}  // namespace

void add_run_commands(CLI::App& app) {
  add_run_command(app, "compress",
                  "generate calibration data and compress the model (under mpirun or srun)",
                  compress);
  add_run_command(app, "generate", "generate the calibration data only (under mpirun or srun)",
                  generate);
}

}  // namespace selfcal
