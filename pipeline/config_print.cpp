#include <fmt/format.h>

#include <algorithm>

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
  ManyJobs many;
  add_rows(rows, config_keys(), "");
  add_rows(rows, many_jobs_keys(many), "");
  add_rows(rows, override_keys(), "overrides[].");
  return rows;
}

/// The values of some keys as YAML, every line behind `indent`.
std::string printed(const RunConfig& config, const std::vector<Key<RunConfig>>& keys,
                    const std::string& indent) {
  std::string yaml;
  std::vector<std::string> open;  // sections of the line before
  for (const auto& key : keys) {
    const std::string value = key.print(config);
    if (value.empty()) continue;
    const auto parts = parts_of(key.path);
    size_t depth = 0;
    while (depth + 1 < parts.size() && depth < open.size() && open[depth] == parts[depth]) ++depth;
    for (; depth + 1 < parts.size(); ++depth)
      yaml += indent + std::string(2 * depth, ' ') + parts[depth] + ":\n";
    yaml += indent + std::string(2 * depth, ' ') + parts.back() + ": " + value + "\n";
    open.assign(parts.begin(), parts.end() - 1);
  }
  return yaml;
}

std::string escaped(const std::string& cell) {
  std::string result;
  for (const char c : cell) result += c == '|' ? "\\|" : std::string(1, c);
  return result;
}

}  // namespace

std::string to_yaml(const RunConfig& config) { return printed(config, config_keys(), ""); }

std::string to_yaml(const std::vector<RunConfig>& jobs) {
  if (jobs.size() == 1) return to_yaml(jobs.front());
  std::vector<Key<RunConfig>> common, different;
  for (const auto& key : config_keys()) {
    const bool same = std::ranges::all_of(
        jobs, [&](const RunConfig& job) { return key.print(job) == key.print(jobs.front()); });
    if (key.path == "name")
      different.insert(different.begin(), key);
    else
      (same ? common : different).push_back(key);
  }
  std::string yaml = printed(jobs.front(), common, "") + "jobs:\n";
  for (const auto& job : jobs) {
    std::string entry = printed(job, different, "    ");
    entry[2] = '-';
    yaml += entry;
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
