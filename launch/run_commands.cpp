// compress and generate: the commands that run on many ranks.
#include <CLI/CLI.hpp>
#include <chrono>
#include <cstdio>
#include <memory>
#include <optional>
#include <thread>

#include "base/log.hpp"
#include "comm/agreement.hpp"
#include "comm/mpi/mpi_backend.hpp"
#include "comm/watchdog.hpp"
#include "launch/commands.hpp"
#include "launch/compute.hpp"
#include "launch/gpus.hpp"
#include "pipeline/compress.hpp"

namespace selfcal {
namespace {

struct RunOptions {
  fs::path config;
  std::vector<std::string> settings;
  double max_hours = 0;
};

/// Ends the job for an error that other ranks do not know of; returns where there are none.
ExitCode end_job(const Communicator& world, const Error& error) {
  // An error of a team carries its rank already.
  const bool named = std::string_view(error.what()).find(" [rank ") != std::string_view::npos;
  const auto rank =
      world.size() > 1 && !named ? fmt::format(" [rank {}]", world.rank()) : std::string();
  std::fprintf(stderr, "selfcal: error: %s%s\n", error.what(), rank.c_str());
  std::fflush(stderr);
  if (world.size() > 1) world.abort(static_cast<int>(error.code()));
  return error.code();
}

/// Calls `run` on all ranks. Errors that all ranks agree on end in an orderly way; others end the
/// job at once.
void run_on_ranks(
    const RunOptions& options,
    const std::function<void(const std::vector<RunConfig>&, const RunEnvironment&)>& run) {
  std::optional<ExitCode> failure;
  {
    std::optional<MpiSession> session;
    if (!is_alone()) session.emplace();
    const Communicator world = session ? Communicator::world() : Communicator::local();
    log::set_speaking(world.rank() == 0);
    try {
      std::vector<RunConfig> jobs;
      agree(world, [&] { jobs = load_jobs(options.config, options.settings); });
      const Watchdog watchdog(world, static_cast<double>(jobs.front().layout.timeout));
      const SharedStop stop(
          world,
          StopSignal(options.max_hours > 0 ? std::optional(options.max_hours) : std::nullopt));
      const RunDevice chosen = choose_device(world, jobs.front().device);
      const Compute compute(jobs.front().threads, cores_of_node(world).sharing_ranks,
                            chosen.device);
      const Communicator& ranks = chosen.ranks ? *chosen.ranks : world;
      run(jobs, {ranks, stop, compute.context(), chosen.kind, chosen.memory});
    } catch (const AgreedError& error) {
      if (world.rank() == 0) std::fprintf(stderr, "selfcal: error: %s\n", error.what());
      failure = error.code();
    } catch (const Stopped& stop) {
      if (world.rank() == 0) std::fprintf(stderr, "selfcal: %s\n", stop.what());
      failure = stop.code();
    } catch (const Error& error) {
      failure = end_job(world, error);
    } catch (const std::exception& error) {
      const std::string text = error.what();
      failure = end_job(world, Error(ExitCode::internal, text.substr(0, text.find('\n'))));
    }
  }
  if (failure) throw Reported(*failure);
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
  command->callback([options, run] { run_on_ranks(*options, run); });
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
