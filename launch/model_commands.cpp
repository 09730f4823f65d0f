// logits, evaluate, export: commands about one model, on one rank.
#include <CLI/CLI.hpp>
#include <memory>

#include "launch/commands.hpp"
#include "launch/compute.hpp"
#include "stages/model/model.hpp"

namespace selfcal {

void add_model_commands(CLI::App& app) {}

}  // namespace selfcal
