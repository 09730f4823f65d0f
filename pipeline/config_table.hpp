// One table says everything about every key: how it is read, checked, printed and documented.
#pragma once
#include <yaml-cpp/yaml.h>

#include <functional>
#include <stdexcept>
#include <string>
#include <vector>

#include "pipeline/config.hpp"

namespace selfcal {

/// A value that a key does not take.
struct BadValue : std::runtime_error {
  using std::runtime_error::runtime_error;
};

class MapReader;

template <class Owner>
struct Key {
  std::string path;      // "calibration.temperature.initial"
  std::string expected;  // "integer from 2 to 8", "self | tokens | vocabulary"
  std::string help;      // one sentence
  std::function<void(Owner&, const YAML::Node&, const MapReader&)> read;  // throws BadValue
  std::function<std::string(const Owner&)> print;  // the value as YAML; empty: not set
  bool required = false;
};

/// Every key of the configuration, in the order it is printed and documented.
const std::vector<Key<RunConfig>>& config_keys();
/// The keys of one entry of `overrides`.
const std::vector<Key<Override>>& override_keys();
/// Fills an object from a YAML map by its keys. Unknown, repeated and refused keys are
/// ExitCode::config.
class MapReader {
 public:
  /// `source`: a file, whose lines go into the messages, or a setting of the command line.
  MapReader(std::string source, bool has_lines)
      : source_(std::move(source)), has_lines_(has_lines) {}
  /// A reader for a part: `prefix` is put before the keys in messages.
  MapReader within(const std::string& prefix) const;

  template <class Owner>
  void read(Owner& owner, const YAML::Node& map, const std::vector<Key<Owner>>& keys,
            const std::string& section = "") const;
  /// One value by its whole path, which may also name a section.
  template <class Owner>
  void read_value(Owner& owner, const std::string& path, const YAML::Node& key,
                  const YAML::Node& value, const std::vector<Key<Owner>>& keys) const;
  /// "file:line" of a node.
  std::string where(const YAML::Node& node) const;

 private:
  std::string source_, prefix_;
  bool has_lines_;
};

/// `jobs` and `sweep` as they stand in the file; what each holds is read by make_jobs().
struct ManyJobs {
  struct Part {
    YAML::Node node;
    MapReader reader;
  };
  std::optional<Part> jobs, sweep;
};
/// The two keys that make many jobs of a file; reading them fills `many`.
std::vector<Key<RunConfig>> many_jobs_keys(ManyJobs& many);
/// Every entry of `jobs` at every point of `sweep`, over what they have in common.
std::vector<RunConfig> make_jobs(const RunConfig& common, const ManyJobs& many);

/// The first required key that is not set; nothing when all are.
template <class Owner>
const Key<Owner>* missing_key(const Owner& owner, const std::vector<Key<Owner>>& keys) {
  for (const auto& key : keys)
    if (key.required && key.print(owner).empty()) return &key;
  return nullptr;
}

}  // namespace selfcal
