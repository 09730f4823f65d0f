#include <algorithm>
#include <map>

#include "base/error.hpp"
#include "pipeline/config_table.hpp"
#include "pipeline/config_values.hpp"

namespace selfcal {
namespace {

size_t edit_distance(const std::string& a, const std::string& b) {
  std::vector<size_t> row(b.size() + 1);
  for (size_t j = 0; j <= b.size(); ++j) row[j] = j;
  for (size_t i = 1; i <= a.size(); ++i) {
    size_t diagonal = std::exchange(row[0], i);
    for (size_t j = 1; j <= b.size(); ++j) {
      const size_t substitution = diagonal + (a[i - 1] != b[j - 1]);
      diagonal = std::exchange(row[j], std::min({row[j - 1] + 1, row[j] + 1, substitution}));
    }
  }
  return row[b.size()];
}

std::string last_part(const std::string& path) { return path.substr(path.rfind('.') + 1); }

/// Every key and every section, each once.
template <class Owner>
std::vector<std::string> known_paths(const std::vector<Key<Owner>>& keys) {
  std::vector<std::string> paths;
  for (const auto& key : keys) {
    for (size_t dot = key.path.find('.'); dot != std::string::npos;
         dot = key.path.find('.', dot + 1))
      if (const auto section = key.path.substr(0, dot);
          std::find(paths.begin(), paths.end(), section) == paths.end())
        paths.push_back(section);
    paths.push_back(key.path);
  }
  return paths;
}

/// The known path that is nearest to a mistyped one: by its whole text, or the same last part in
/// another section.
template <class Owner>
std::string suggestion(const std::string& path, const std::vector<Key<Owner>>& keys) {
  std::string best;
  size_t least = std::max<size_t>(3, path.size() / 3 + 1);
  for (const auto& known : known_paths(keys)) {
    const size_t elsewhere = edit_distance(last_part(path), last_part(known)) + 1;
    const bool similar = elsewhere <= last_part(path).size() / 3 + 1;
    const size_t distance = std::min(edit_distance(path, known), similar ? elsewhere : least);
    if (distance < least) {
      least = distance;
      best = known;
    }
  }
  return best;
}

}  // namespace

MapReader MapReader::within(const std::string& prefix) const {
  MapReader part = *this;
  part.prefix_ = prefix;
  return part;
}

std::string MapReader::where(const YAML::Node& node) const {
  if (!has_lines_ || node.Mark().is_null()) return source_;
  return fmt::format("{}:{}", source_, node.Mark().line + 1);
}

template <class Owner>
void MapReader::read(Owner& owner, const YAML::Node& map, const std::vector<Key<Owner>>& keys,
                     const std::string& section) const {
  if (map.IsNull()) return;
  const std::string path = section.empty() ? prefix_ + "the configuration" : prefix_ + section;
  if (!map.IsMap())
    fail(ExitCode::config, "{}: {}: found {}, expected a map", where(map), path,
         values::describe(map));
  std::map<std::string, YAML::Node> seen;
  for (const auto& entry : map) {
    if (!entry.first.IsScalar())
      fail(ExitCode::config, "{}: {}: found {} as a key, expected text", where(entry.first), path,
           values::describe(entry.first));
    const std::string name =
        section.empty() ? entry.first.Scalar() : section + "." + entry.first.Scalar();
    if (const auto [first, fresh] = seen.emplace(name, entry.first); !fresh)
      fail(ExitCode::config, "{}: {}{}: found twice, expected once (first at {})",
           where(entry.first), prefix_, values::quoted(name), where(first->second));
    read_value(owner, name, entry.first, entry.second, keys);
  }
}

template <class Owner>
void MapReader::read_value(Owner& owner, const std::string& path, const YAML::Node& key,
                           const YAML::Node& value, const std::vector<Key<Owner>>& keys) const {
  for (const auto& known : keys) {
    if (known.path == path) try {
        return known.read(owner, value, *this);
      } catch (const BadValue& bad) {
        fail(ExitCode::config, "{}: {}{}: {}, expected {}", where(key), prefix_, path, bad.what(),
             known.expected);
      }
    if (known.path.starts_with(path + ".")) return read(owner, value, keys, path);
  }
  const std::string nearest = suggestion(path, keys);
  fail(ExitCode::config, "{}: {}{}: found an unknown key, expected {}", where(key), prefix_,
       values::quoted(path),
       nearest.empty() ? "one of those that `selfcal config-help` lists"
                       : prefix_ + nearest + " perhaps");
}

template void MapReader::read(RunConfig&, const YAML::Node&, const std::vector<Key<RunConfig>>&,
                              const std::string&) const;
template void MapReader::read(Override&, const YAML::Node&, const std::vector<Key<Override>>&,
                              const std::string&) const;
template void MapReader::read_value(RunConfig&, const std::string&, const YAML::Node&,
                                    const YAML::Node&, const std::vector<Key<RunConfig>>&) const;

}  // namespace selfcal
