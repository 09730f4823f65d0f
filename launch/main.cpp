// The command line. --help needs no MPI, GPU or configuration; every error ends in one line and the
// right exit code.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <cstdlib>

#include "base/error.hpp"
#include "launch/commands.hpp"

namespace {

/// The rank that the launcher gave this process, known before MPI starts.
int launched_rank() {
  for (const char* name : {"OMPI_COMM_WORLD_RANK", "PMIX_RANK", "SLURM_PROCID"})
    if (const char* value = std::getenv(name)) return std::atoi(value);
  return 0;
}

void print_error(const char* text) { std::fprintf(stderr, "selfcal: error: %s\n", text); }

}  // namespace

// What throws outside the try block is lack of memory.
// NOLINTNEXTLINE(bugprone-exception-escape)
int main(int argc, char** argv) {
  using selfcal::ExitCode;
  CLI::App app("Compress large language models with calibration data that the model writes itself.",
               "selfcal");
  app.require_subcommand(1);
  app.set_version_flag("--version", selfcal::version_text());
  selfcal::add_commands(app);
  try {
    const auto is_named = [&](const CLI::App* command) { return command->get_name() == argv[1]; };
    if (argc > 1 && argv[1][0] != '-' && std::ranges::none_of(app.get_subcommands({}), is_named))
      selfcal::fail(ExitCode::usage, "{}: not a command (selfcal --help lists what there is)",
                    argv[1]);
    app.parse(argc, argv);
    return static_cast<int>(ExitCode::done);
  } catch (const CLI::Success& request) {  // --help, --version
    return launched_rank() == 0 ? app.exit(request) : 0;
  } catch (const CLI::ParseError& error) {
    if (launched_rank() == 0)
      print_error((std::string(error.what()) + " (selfcal --help lists what there is)").c_str());
    return static_cast<int>(ExitCode::usage);
  } catch (const selfcal::Reported& reported) {
    return static_cast<int>(reported.code());
  } catch (const selfcal::Error& error) {
    if (launched_rank() == 0) print_error(error.what());
    return static_cast<int>(error.code());
  } catch (const std::exception& error) {
    const std::string text = error.what();
    print_error(text.substr(0, text.find('\n')).c_str());  // libraries add their stack
    return static_cast<int>(ExitCode::internal);
  }
}
