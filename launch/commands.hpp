// The commands of the program, each with its options.
#pragma once
#include <string>

#include "base/error.hpp"

namespace CLI {
class App;
}

namespace selfcal {

/// An error whose line has been printed already: only the exit code is left to pass on.
class Reported : public Error {
 public:
  explicit Reported(ExitCode code) : Error(code, "") {}
};

/// Adds every command to the command line; each runs when it is parsed.
void add_commands(CLI::App& app);

/// Our version and those of the libraries.
std::string version_text();

// One function a file.
void add_run_commands(CLI::App& app);       // compress, generate: under MPI
void add_plan_commands(CLI::App& app);      // plan, config
void add_model_commands(CLI::App& app);     // logits, evaluate; export: under MPI too
void add_artefact_commands(CLI::App& app);  // inspect, verify, solve

}  // namespace selfcal
