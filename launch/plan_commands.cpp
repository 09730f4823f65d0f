// plan and config-help: what can be asked without running anything.
#include <CLI/CLI.hpp>
#include <cstdio>
#include <memory>

#include "launch/commands.hpp"
#include "pipeline/config.hpp"

namespace selfcal {

void add_plan_commands(CLI::App& app) {
  auto* keys = app.add_subcommand("config-help",
                                  "every key of the configuration, with its default and range");
  const auto markdown = std::make_shared<bool>(false);
  keys->add_flag("--markdown", *markdown, "as the table of docs/config.md");
  keys->callback(
      [markdown] { std::fputs((*markdown ? config_markdown() : config_help()).c_str(), stdout); });
}

}  // namespace selfcal
