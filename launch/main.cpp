// The command line. --help needs no MPI, GPU or configuration; every error ends in one line and the
// right exit code.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <cstdlib>

#include "base/error.hpp"
#include "comm/mpi/mpi_backend.hpp"
#include "launch/commands.hpp"

namespace {

/// The rank that the launcher gave this process, known before MPI starts.
int launched_rank() {
  for (const char* name : {"OMPI_COMM_WORLD_RANK", "PMIX_RANK", "SLURM_PROCID"})
    if (const char* value = std::getenv(name)) return std::atoi(value);
  return 0;
}

/// One rank speaks for all, by what the launcher says before MPI starts. Where the launcher does
/// not count them the first one cannot know that MPI has left it alone, so the second one may speak
/// too.
bool speaks() {
  return launched_rank() == 0 || (launched_rank() == 1 && selfcal::counted_ranks() == 0);
}

void print_error(const char* text) { std::fprintf(stderr, "selfcal: error: %s\n", text); }

int run(int argc, char** argv) {
  using selfcal::ExitCode;
  CLI::App app("Compress large language models with calibration data that the model writes itself.",
               "selfcal");
  app.require_subcommand(1);
  app.set_version_flag("--version", selfcal::version_text());
  selfcal::add_commands(app);
  const bool is_first = launched_rank() == 0, may_speak = speaks();
  try {
    const auto is_named = [&](const CLI::App* command) { return command->get_name() == argv[1]; };
    if (argc > 1 && argv[1][0] != '-' && std::ranges::none_of(app.get_subcommands({}), is_named))
      selfcal::fail(ExitCode::usage, "{}: not a command (selfcal --help lists what there is)",
                    argv[1]);
    app.parse(argc, argv);
    return static_cast<int>(ExitCode::done);
  } catch (const CLI::Success& request) {  // --help, --version
    return is_first ? app.exit(request) : 0;
  } catch (const CLI::ParseError& error) {
    if (is_first)
      print_error((std::string(error.what()) + " (selfcal --help lists what there is)").c_str());
    return static_cast<int>(ExitCode::usage);
  } catch (const selfcal::Reported& reported) {
    return static_cast<int>(reported.code());
  } catch (const selfcal::Error& error) {
    if (may_speak) print_error(error.what());
    return static_cast<int>(error.code());
  } catch (const std::exception& error) {
    const std::string text = error.what();
    print_error(text.substr(0, text.find('\n')).c_str());  // libraries add their stack
    return static_cast<int>(ExitCode::internal);
  }
}

}  // namespace

// What throws outside the try block is lack of memory.
// NOLINTNEXTLINE(bugprone-exception-escape)
int main(int argc, char** argv) {
  const int code = run(argc, argv);
  // The tensor library needs a tenth of a second to take itself apart; all that is ours is closed.
  std::fflush(nullptr);
  std::quick_exit(code);
}
