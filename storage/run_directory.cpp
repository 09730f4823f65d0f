#include "storage/run_directory.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <sstream>

#include "base/error.hpp"

namespace selfcal {
namespace {

/// Lines that decide what is computed: those of free top-level keys, blank lines and comments are
/// left out.
std::vector<std::string> binding_lines(const std::string& yaml,
                                       const std::vector<std::string>& free_keys) {
  std::vector<std::string> lines;
  std::istringstream text(yaml);
  bool is_free = false;
  for (std::string line; std::getline(text, line);) {
    line.erase(line.find_last_not_of(" \t\r") + 1);
    if (line.empty() || line[0] == '#') continue;
    const bool is_top_level = line[0] != ' ' && line[0] != '-' && line[0] != '}' && line[0] != ']';
    if (is_top_level)
      is_free = std::find(free_keys.begin(), free_keys.end(), line.substr(0, line.find(':'))) !=
                free_keys.end();
    if (!is_free) lines.push_back(line);
  }
  return lines;
}

std::string trimmed(const std::string& line) {
  const size_t begin = line.find_first_not_of(' ');
  return begin == std::string::npos ? line : line.substr(begin);
}

/// "has 'bits: 8' where this run has 'bits: 4'", or nothing.
std::string first_difference(const std::vector<std::string>& there,
                             const std::vector<std::string>& here) {
  const auto [a, b] = std::mismatch(there.begin(), there.end(), here.begin(), here.end());
  if (a == there.end() && b == here.end()) return {};
  const auto text = [](auto line, auto end) {
    return line == end ? "nothing more" : "'" + trimmed(*line) + "'";
  };
  return fmt::format("has {} where this run has {}", text(a, there.end()), text(b, here.end()));
}

/// Files that a killed start may leave before run.yaml is there.
bool is_of_a_start(const fs::path& entry) {
  const std::string name = entry.filename().string();
  return name.starts_with("lock") || name == "logs" ||
         (name.starts_with(".") && name.ends_with(".tmp"));
}

}  // namespace

void make_folder(const fs::path& path) {
  std::error_code error;
  fs::create_directories(path, error);
  if (error) fail(ExitCode::io, "{}: cannot create the folder: {}", path.string(), error.message());
}

void remove_unfinished(const fs::path& folder) {
  std::error_code error;
  std::vector<fs::path> unfinished;
  for (const auto& entry : fs::directory_iterator(folder, error)) {
    const std::string name = entry.path().filename().string();
    if (name.starts_with(".") && name.ends_with(".tmp")) unfinished.push_back(entry.path());
  }
  for (const auto& path : unfinished) fs::remove_all(path, error);
}

fs::path JobDirectory::layer(int64_t number) const {
  return layers() / fmt::format("{:04}.h5", number);
}

void RunDirectory::prepare(const std::string& resolved_config,
                           const std::vector<std::string>& free_keys) const {
  make_folder(path_);
  if (!fs::exists(config())) {
    for (const auto& entry : fs::directory_iterator(path_))
      if (!is_of_a_start(entry.path()))
        fail(ExitCode::config, "output: {} holds {} but no run; choose another directory",
             path_.string(), entry.path().filename().string());
  } else {
    const std::string there = read_text(config());
    if (there == resolved_config) return;
    const std::string difference = first_difference(binding_lines(there, free_keys),
                                                    binding_lines(resolved_config, free_keys));
    if (!difference.empty())
      fail(ExitCode::config, "output: {} is of another config: it {}; choose another directory",
           config().string(), difference);
  }
  write_text_atomically(config(), resolved_config);
}

void RunDirectory::expect_run() const {
  std::error_code error;
  if (!fs::is_regular_file(config(), error))
    fail(ExitCode::config, "{}: not a run directory: it has no run.yaml", path_.string());
}

JobDirectory RunDirectory::job(const std::string& name) const {
  if (name.empty() || name == "." || name == ".." || name.find_first_of("/\n") != std::string::npos)
    fail(ExitCode::config, "job name '{}': expected a plain folder name", name);
  return JobDirectory(path_ / "jobs" / name);
}

std::vector<std::string> RunDirectory::jobs() const {
  std::vector<std::string> names;
  std::error_code error;
  for (const auto& entry : fs::directory_iterator(path_ / "jobs", error))
    if (entry.is_directory(error)) names.push_back(entry.path().filename().string());
  std::sort(names.begin(), names.end());
  return names;
}

}  // namespace selfcal
