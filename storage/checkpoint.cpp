#include "storage/checkpoint.hpp"

#include <ATen/ATen.h>

#include <nlohmann/json.hpp>
#include <set>

#include "base/error.hpp"
#include "base/hash.hpp"
#include "storage/dtype.hpp"

namespace selfcal {
namespace {

/// Refuses what a lenient parser would let through: a key given twice, and nesting deeper than any
/// real file has.
nlohmann::json parse_strictly(const std::string& text, const std::string& file) {
  using Event = nlohmann::json::parse_event_t;
  constexpr size_t deepest = 32;
  std::vector<std::set<std::string>> keys(deepest + 1);
  const auto check = [&](int depth, Event event, nlohmann::json& value) {
    const auto level = static_cast<size_t>(depth);
    if (level >= deepest) fail(ExitCode::data, "{}: JSON is nested deeper than {}", file, deepest);
    if (event == Event::object_start) keys[level + 1].clear();
    if (event == Event::key && !keys[level].insert(value.get<std::string>()).second)
      fail(ExitCode::data, "{}: '{}' is given twice", file, printable(value.get<std::string>()));
    return true;
  };
  nlohmann::json parsed;
  try {
    parsed = nlohmann::json::parse(text, check);
  } catch (const nlohmann::json::exception&) {
    fail(ExitCode::data, "{}: not valid JSON in UTF-8", file);
  }
  if (!parsed.is_object())
    fail(ExitCode::data, "{}: {}, expected a JSON object", file, parsed.type_name());
  return parsed;
}

/// The distinct file names of an index, each a plain name inside the directory.
std::map<std::string, std::string> read_weight_map(const fs::path& path) {
  const nlohmann::json index = parse_strictly(read_text(path), path.string());
  const auto map = index.find("weight_map");
  if (map == index.end() || !map->is_object() || map->empty())
    fail(ExitCode::data, "{}: no weight_map that names the tensors' files", path.string());
  std::map<std::string, std::string> files;
  for (const auto& [tensor, file] : map->items()) {
    if (!file.is_string() ||
        fs::path(file.get<std::string>()).filename() != file.get<std::string>() ||
        file.get<std::string>().empty())
      fail(ExitCode::data, "{}: tensor '{}': {} is not a file name in this directory",
           path.string(), printable(tensor),
           printable(file.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace)));
    files.emplace(tensor, file.get<std::string>());
  }
  return files;
}

}  // namespace

Checkpoint::Checkpoint(const fs::path& directory) : directory_(directory) {
  const std::string where = directory.string();
  std::error_code error;
  if (!fs::is_directory(directory, error))
    fail(ExitCode::data, "{}: no such model directory", where);
  if (!fs::exists(directory / "config.json", error))
    fail(ExitCode::data, "{}: no config.json; expected a Hugging Face model directory", where);
  config_text_ = read_text(directory / "config.json");
  parse_strictly(config_text_, (directory / "config.json").string());

  const fs::path single = directory / "model.safetensors",
                 index = directory / "model.safetensors.index.json";
  if (fs::exists(index, error)) {
    add_indexed_files(index);
  } else if (fs::exists(single, error)) {
    add_file(single);
  } else if (fs::exists(directory / "pytorch_model.bin", error) ||
             fs::exists(directory / "pytorch_model.bin.index.json", error)) {
    fail(ExitCode::data,
         "{}: weights are in pytorch_model.bin only; write safetensors first with "
         "tools/convert_bin {}",
         where, where);
  } else {
    fail(ExitCode::data,
         "{}: no weights: expected model.safetensors or model.safetensors.index.json", where);
  }
}

void Checkpoint::add_file(const fs::path& path) {
  files_.push_back(std::make_shared<TensorFile>(path));
  for (const auto& [name, entry] : files_.back()->entries()) {
    const auto [other, added] = file_of_tensor_.emplace(name, files_.size() - 1);
    if (!added)
      fail(ExitCode::data, "{}: tensor '{}' is in {} too", path.string(), printable(name),
           files_[other->second]->path().filename().string());
  }
}

void Checkpoint::add_indexed_files(const fs::path& index) {
  const auto weight_map = read_weight_map(index);
  std::map<std::string, size_t> opened;
  for (const auto& [tensor, file] : weight_map) {
    if (opened.contains(file)) continue;
    std::error_code error;
    if (!fs::is_regular_file(directory_ / file, error))
      fail(ExitCode::data, "{}: names {} (tensor '{}'), which is missing", index.string(),
           printable(file), printable(tensor));
    opened.emplace(file, files_.size());
    add_file(directory_ / file);
  }
  for (const auto& [tensor, file] : weight_map) {
    const auto holder = file_of_tensor_.find(tensor);
    if (holder == file_of_tensor_.end() || holder->second != opened.at(file))
      fail(ExitCode::data, "{}: tensor '{}' is not in {}", index.string(), printable(tensor),
           printable(file));
  }
}

bool Checkpoint::contains(const std::string& name) const { return file_of_tensor_.contains(name); }

const TensorFile& Checkpoint::holder(const std::string& name) const {
  const auto found = file_of_tensor_.find(name);
  if (found == file_of_tensor_.end())
    fail(ExitCode::data, "{}: no tensor '{}' in its {} weight file{}", directory_.string(),
         printable(name), files_.size(), files_.size() == 1 ? "" : "s");
  return *files_[found->second];
}

const TensorEntry& Checkpoint::entry(const std::string& name) const {
  return holder(name).entries().at(name);
}

const fs::path& Checkpoint::file_of(const std::string& name) const { return holder(name).path(); }

std::vector<std::string> Checkpoint::names() const {
  std::vector<std::string> all;
  for (const auto& [name, file] : file_of_tensor_) all.push_back(name);
  return all;
}

at::Tensor Checkpoint::read(const std::string& name,
                            const std::vector<int64_t>& expected_shape) const {
  const TensorFile& file = holder(name);
  const auto& shape = file.entries().at(name).shape;
  if (shape != expected_shape)
    fail(ExitCode::data, "{}: tensor '{}' is {}, expected {}", file.path().string(),
         printable(name), shape_text(shape), shape_text(expected_shape));
  return file.read(name);
}

at::Tensor Checkpoint::read_rows(const std::string& name, int64_t first, int64_t count) const {
  return holder(name).read_rows(name, first, count);
}

std::string Checkpoint::identity() const {
  Hasher hasher;
  hasher.text(config_text_);
  for (const auto& file : files_)
    hasher.text(file->path().filename().string()).text(file->header_hash());
  return hasher.digest();
}

}  // namespace selfcal
