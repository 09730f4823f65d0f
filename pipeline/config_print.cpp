#include <fmt/format.h>

#include "pipeline/config_table.hpp"
#include "pipeline/config_values.hpp"

namespace selfcal {
namespace {

std::vector<std::string> parts_of(const std::string& path) {
  std::vector<std::string> parts;
  size_t start = 0;
  for (size_t dot = path.find('.'); dot != std::string::npos; dot = path.find('.', start)) {
    parts.push_back(path.substr(start, dot - start));
    start = dot + 1;
  }
  parts.push_back(path.substr(start));
  return parts;
}

struct Row {
  std::string path, expected, fallback, help;
};

template <class Owner>
void add_rows(std::vector<Row>& rows, const std::vector<Key<Owner>>& keys,
              const std::string& prefix) {
  const Owner defaults;
  for (const auto& key : keys) {
    const std::string value = key.print(defaults);
    rows.push_back({prefix + key.path, key.expected,
                    key.required    ? "required"
                    : value.empty() ? "-"
                                    : value,
                    key.help});
  }
}

std::vector<Row> all_rows() {
  std::vector<Row> rows;
  add_rows(rows, config_keys(), "");
  add_rows(rows, override_keys(), "overrides[].");
  return rows;
}

std::string escaped(const std::string& cell) {
  std::string result;
  for (const char c : cell) result += c == '|' ? "\\|" : std::string(1, c);
  return result;
}

}  // namespace

std::string to_yaml(const RunConfig& config) {
  std::string yaml;
  std::vector<std::string> open;  // sections of the line before
  for (const auto& key : config_keys()) {
    const std::string value = key.print(config);
    if (value.empty()) continue;
    const auto parts = parts_of(key.path);
    size_t depth = 0;
    while (depth + 1 < parts.size() && depth < open.size() && open[depth] == parts[depth]) ++depth;
    for (; depth + 1 < parts.size(); ++depth)
      yaml += std::string(2 * depth, ' ') + parts[depth] + ":\n";
    yaml += std::string(2 * depth, ' ') + parts.back() + ": " + value + "\n";
    open.assign(parts.begin(), parts.end() - 1);
  }
  return yaml;
}

std::string config_markdown() {
  std::string page =
      "# Configuration\n\n"
      "Every key of a configuration file. `selfcal config-help` prints the same table; `--set "
      "key=value` sets a key from "
      "the command line. Paths are relative to the working directory. Unknown, repeated and "
      "out-of-range keys are "
      "errors.\n\n"
      "| key | values | default | |\n|---|---|---|---|\n";
  for (const auto& row : all_rows())
    page += fmt::format("| `{}` | {} | `{}` | {} |\n", row.path, escaped(row.expected),
                        escaped(row.fallback), escaped(row.help));
  return page;
}

std::string config_help() {
  std::string page;
  for (const auto& row : all_rows())
    page += fmt::format("{} ({}; default {})\n    {}\n", row.path, row.expected, row.fallback,
                        row.help);
  return page;
}

}  // namespace selfcal
