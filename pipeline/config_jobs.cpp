// Many jobs of one file: `jobs` (a list of maps) times `sweep` (a grid of values), over what they
// have in common.
#include <algorithm>
#include <cctype>
#include <map>
#include <set>

#include "base/error.hpp"
#include "pipeline/config_table.hpp"
#include "pipeline/config_values.hpp"

namespace selfcal {
namespace {

using namespace values;

constexpr size_t most_jobs = 1000;

bool is_of_the_run(const std::string& path) {
  return path == "output" || path == "device" || path == "threads" || path.starts_with("layout.");
}

/// The keys that one job may set for itself.
const std::vector<Key<RunConfig>>& job_keys() {
  static const std::vector<Key<RunConfig>> keys = [] {
    auto all = config_keys();
    for (auto& key : all)
      if (is_of_the_run(key.path)) {
        key.read = [](RunConfig&, const YAML::Node&, const MapReader&) {
          throw BadValue("found a setting of the whole run");
        };
        key.expected = "it outside of jobs and sweep";
      }
    return all;
  }();
  return keys;
}

const Key<RunConfig>* key_of(const std::string& path) {
  const auto& keys = job_keys();
  const auto found = std::ranges::find(keys, path, &Key<RunConfig>::path);
  return found == keys.end() ? nullptr : &*found;
}

bool is_section(const std::string& path) {
  return std::ranges::any_of(job_keys(),
                             [&](const auto& key) { return key.path.starts_with(path + "."); });
}

std::string below(const std::string& section, const std::string& name) {
  return section.empty() ? name : section + "." + name;
}

/// Paths of the keys that a map sets.
void collect_paths(const YAML::Node& map, const std::string& section,
                   std::vector<std::string>& paths) {
  if (!map.IsMap()) return;
  for (const auto& entry : map) {
    const std::string path = below(section, entry.first.Scalar());
    if (key_of(path) != nullptr)
      paths.push_back(path);
    else
      collect_paths(entry.second, path, paths);
  }
}

std::string letters_of_a_name(std::string text) {
  for (char& c : text)
    if (std::isalnum(static_cast<unsigned char>(c)) == 0 && c != '.' && c != '_') c = '-';
  return text;
}

/// How a key's value stands in the name of a job: "gptq", "t0.8", "s1", "b4".
std::string label(const RunConfig& config, const std::string& path) {
  static const std::map<std::string, std::string> short_names{{"method.name", ""},
                                                              {"method.propagation", ""},
                                                              {"method.sequential", ""},
                                                              {"calibration.source", ""},
                                                              {"model.dtype", ""},
                                                              {"seed", "s"},
                                                              {"calibration.sequences", "n"},
                                                              {"calibration.length", "l"},
                                                              {"method.bits", "b"},
                                                              {"method.group_size", "g"},
                                                              {"method.damping", "d"},
                                                              {"method.sparsity", "p"},
                                                              {"method.layer_sparsity", ""},
                                                              {"calibration.sampling.top_k", "k"}};
  const auto& calibration = config.calibration;
  if (path == "model.path") return letters_of_a_name(config.model.filename().string());
  if (path.starts_with("calibration.temperature."))
    return calibration.temperature_steps == 0
               ? "t" + number_text(calibration.temperature_final)
               : fmt::format("t{}-{}-{}", number_text(calibration.temperature_initial),
                             number_text(calibration.temperature_final),
                             calibration.temperature_steps);
  if (path == "method.symmetric") return config.method.symmetric ? "symmetric" : "asymmetric";
  const auto& pattern = config.method.sparsity.pattern;
  if (path == "method.pattern" && pattern.of > 0)
    return fmt::format("{}of{}", pattern.zeros, pattern.of);
  const std::string value = letters_of_a_name(key_of(path)->print(config));
  if (const auto found = short_names.find(path); found != short_names.end())
    return found->second + value;
  const std::string last = path.substr(path.rfind('.') + 1);
  if (value == "true") return last;
  return std::isalnum(static_cast<unsigned char>(value.front())) != 0 ? last + "-" + value : last;
}

/// What a job is called: parts joined by dashes, none twice in a row.
class Name {
 public:
  void add(const std::string& part) {
    if (!part.empty() && (parts_.empty() || parts_.back() != part)) parts_.push_back(part);
  }
  void add(const RunConfig& config, const std::vector<std::string>& paths) {
    for (const auto& path : paths)
      if (path != "name") add(label(config, path));
  }
  std::string text() const { return fmt::format("{}", fmt::join(parts_, "-")); }

 private:
  std::vector<std::string> parts_;
};

/// One dimension of the grid.
struct Axis {
  std::string path;
  std::vector<YAML::Node> values;
};

void read_axes(const MapReader& reader, const YAML::Node& map, const std::string& section,
               std::map<std::string, YAML::Node>& seen, std::vector<Axis>& axes) {
  for (const auto& entry : map) {
    if (!entry.first.IsScalar())
      fail(ExitCode::config, "{}: sweep: found {} as a key, expected text",
           reader.where(entry.first), describe(entry.first));
    const std::string path = below(section, entry.first.Scalar());
    const auto place = [&] { return fmt::format("{}: sweep.{}", reader.where(entry.first), path); };
    const bool section_found = is_section(path);
    if (path == "name") fail(ExitCode::config, "{}: found a name, expected it in jobs", place());
    if (!section_found && key_of(path) == nullptr) {
      RunConfig scratch;  // says what is wrong with the key
      reader.within("sweep.").read_value(scratch, path, entry.first, entry.second, job_keys());
    }
    if (entry.second.IsMap() && section_found) {
      read_axes(reader, entry.second, path, seen, axes);
      continue;
    }
    if (const auto [first, fresh] = seen.emplace(path, entry.first); !fresh)
      fail(ExitCode::config, "{}: found twice, expected once (first at {})", place(),
           reader.where(first->second));
    if (!entry.second.IsSequence() || entry.second.size() == 0)
      fail(ExitCode::config, "{}: found {}, expected a list of values", place(),
           entry.second.IsSequence() ? "an empty list" : describe(entry.second));
    auto& axis = axes.emplace_back();
    axis.path = path;
    for (const auto& value : entry.second) axis.values.push_back(value);
  }
}

std::vector<Axis> read_axes(const ManyJobs::Part& sweep) {
  const auto& [node, reader] = sweep;
  if (!node.IsMap() || node.size() == 0)
    fail(ExitCode::config, "{}: sweep: found {}, expected a map of keys to lists of values",
         reader.where(node), node.IsMap() ? "an empty map" : describe(node));
  std::vector<Axis> axes;
  std::map<std::string, YAML::Node> seen;
  read_axes(reader, node, "", seen, axes);
  if (axes.empty())
    fail(ExitCode::config, "{}: sweep: found no list of values, expected at least one",
         reader.where(node));
  return axes;
}

struct NamedJob {
  RunConfig config;
  Name name;
  std::string place;  // in the file
};

std::vector<NamedJob> entries_of(const RunConfig& common, const ManyJobs& many) {
  Name prefix;
  if (common.name != RunConfig().name) prefix.add(common.name);
  if (!many.jobs) return {{common, prefix, many.sweep->reader.where(many.sweep->node)}};
  const auto& [node, reader] = *many.jobs;
  if (!node.IsSequence() || node.size() == 0 || node.size() > most_jobs)
    fail(ExitCode::config, "{}: jobs: found {}, expected a list of 1 to {} maps",
         reader.where(node),
         !node.IsSequence() ? describe(node)
         : node.size() == 0 ? "an empty list"
                            : fmt::format("{} entries", node.size()),
         most_jobs);
  std::vector<NamedJob> jobs;
  for (const auto& entry : node) {
    const auto part = reader.within(fmt::format("jobs[{}].", jobs.size()));
    if (!entry.IsMap())
      fail(ExitCode::config, "{}: jobs[{}]: found {}, expected a map", reader.where(entry),
           jobs.size(), describe(entry));
    auto& job = jobs.emplace_back(NamedJob{common, prefix, reader.where(entry)});
    part.read(job.config, entry, job_keys());
    std::vector<std::string> paths;
    collect_paths(entry, "", paths);
    if (std::ranges::find(paths, "name") != paths.end()) {
      job.name = {};
      job.name.add(job.config.name);
    } else {
      job.name.add(job.config, paths);
    }
  }
  return jobs;
}

/// Every job once for each value of the axis, which runs faster than those before it.
std::vector<NamedJob> spread(const std::vector<NamedJob>& jobs, const Axis& axis,
                             const MapReader& reader) {
  if (jobs.size() * axis.values.size() > most_jobs)
    fail(ExitCode::config, "{}: sweep: found a grid of {} jobs, expected at most {}",
         reader.where(axis.values.front()), jobs.size() * axis.values.size(), most_jobs);
  std::vector<NamedJob> all;
  for (const auto& job : jobs)
    for (const auto& value : axis.values) {
      auto& next = all.emplace_back(job);
      reader.within("sweep.").read_value(next.config, axis.path, value, value, job_keys());
      std::vector<std::string> paths;
      if (key_of(axis.path) != nullptr)
        paths = {axis.path};
      else
        collect_paths(value, axis.path, paths);
      if (std::ranges::find(paths, "name") != paths.end())
        fail(ExitCode::config, "{}: sweep: found a name, expected it in jobs", reader.where(value));
      next.name.add(next.config, paths);
      next.place = reader.where(value);
    }
  return all;
}

}  // namespace

std::vector<Key<RunConfig>> many_jobs_keys(ManyJobs& many) {
  const auto keeps = [](std::optional<ManyJobs::Part>& part) {
    return [&part](RunConfig&, const YAML::Node& node, const MapReader& reader) {
      part = ManyJobs::Part{node, reader};
    };
  };
  const auto none = [](const RunConfig&) { return std::string(); };
  return {
      {"jobs", "list of maps of keys",
       "Many jobs in one run: each entry is a job that changes some keys (any but output, "
       "device, threads and layout) of what stands outside; `name` calls it something of your own.",
       keeps(many.jobs), none},
      {"sweep", "map of keys, or sections, to lists of values",
       "A job at every point of the grid, as in {method.bits: [3, 4], seed: [0, 1]}, for "
       "every entry of jobs; named by the values, as in gptq-t0.8-s1.",
       keeps(many.sweep), none}};
}

std::vector<RunConfig> make_jobs(const RunConfig& common, const ManyJobs& many) {
  if (!many.jobs && !many.sweep) return {common};
  std::vector<NamedJob> jobs = entries_of(common, many);
  if (many.sweep)
    for (const auto& axis : read_axes(*many.sweep)) jobs = spread(jobs, axis, many.sweep->reader);
  std::vector<RunConfig> configs;
  std::map<std::string, std::string> places;
  for (auto& [config, name, place] : jobs) {
    config.name = name.text().empty() ? common.name : name.text();
    if (const size_t longest = 100; config.name.size() > longest) config.name.resize(longest);
    if (const auto [first, fresh] = places.emplace(config.name, place); !fresh)
      fail(ExitCode::config,
           "{}: jobs: found a second job named {}, expected other values, or a name of its own "
           "(the first is at {})",
           place, config.name, first->second);
    configs.push_back(std::move(config));
  }
  return configs;
}

std::string forward_key(const RunConfig& config) {
  std::string text;
  for (const auto& key : config_keys())
    if (key.path == "seed" || key.path.starts_with("model.") ||
        key.path.starts_with("calibration."))
      text += key.path + ": " + key.print(config) + "\n";
  return text;
}

bool measures_loss(const RunConfig& config, bool beside) {
  const AutoFlag asked = config.evaluate.calibration_loss;
  return asked == AutoFlag::automatic ? beside : asked == AutoFlag::yes;
}

bool differ_in_propagation_only(const RunConfig& a, const RunConfig& b) {
  RunConfig alike = b;
  alike.propagation = a.propagation;
  return a.propagation != b.propagation && forward_key(a) == forward_key(b) &&
         identity(a) == identity(alike);
}

}  // namespace selfcal
