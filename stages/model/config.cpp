#include "stages/model/config.hpp"

#include <nlohmann/json.hpp>

#include "base/error.hpp"

namespace selfcal {

using nlohmann::json;

ModelConfig::ModelConfig(const std::filesystem::path& path, const std::string& text)
    : where_(path.string()),
      values_(
          std::make_shared<const json>(json::parse(text, nullptr, /*allow_exceptions=*/false))) {
  if (!values_->is_object()) fail(ExitCode::data, "{}: not a JSON object", where_);
}

ModelConfig::ModelConfig(std::string where, std::shared_ptr<const json> values)
    : where_(std::move(where)), values_(std::move(values)) {}

const json* ModelConfig::find(const std::string& key) const {
  const auto found = values_->find(key);
  return found == values_->end() || found->is_null() ? nullptr : &*found;
}

bool ModelConfig::contains(const std::string& key) const { return find(key) != nullptr; }

void ModelConfig::reject(const std::string& key, const char* expected) const {
  std::string found = find(key)->dump(-1, ' ', true, json::error_handler_t::replace);
  if (found.size() > 80) found = found.substr(0, 80) + "...";
  fail(ExitCode::data, "{}: {}: {}, expected {}", where_, key, found, expected);
}

void ModelConfig::reject_missing(const std::string& key) const {
  fail(ExitCode::data, "{}: no key '{}'", where_, key);
}

int64_t ModelConfig::integer(const std::string& key) const {
  const json* value = find(key);
  if (!value) reject_missing(key);
  constexpr int64_t largest = int64_t{1} << 40;
  if (!value->is_number_integer() || value->get<int64_t>() <= 0 || value->get<int64_t>() > largest)
    reject(key, "a positive whole number");
  return value->get<int64_t>();
}

int64_t ModelConfig::integer(const std::string& key, int64_t otherwise) const {
  return contains(key) ? integer(key) : otherwise;
}

int64_t ModelConfig::whole_number(const std::string& key, int64_t otherwise) const {
  const json* value = find(key);
  if (!value) return otherwise;
  if (!value->is_number_integer() || value->get<int64_t>() < 0)
    reject(key, "a whole number from 0 on");
  return value->get<int64_t>();
}

double ModelConfig::number(const std::string& key) const {
  const json* value = find(key);
  if (!value) reject_missing(key);
  if (!value->is_number()) reject(key, "a number");
  return value->get<double>();
}

double ModelConfig::number(const std::string& key, double otherwise) const {
  return contains(key) ? number(key) : otherwise;
}

bool ModelConfig::flag(const std::string& key, bool otherwise) const {
  const json* value = find(key);
  if (!value) return otherwise;
  if (!value->is_boolean()) reject(key, "true or false");
  return value->get<bool>();
}

std::string ModelConfig::text(const std::string& key, const std::string& otherwise) const {
  const json* value = find(key);
  if (!value) return otherwise;
  if (!value->is_string()) reject(key, "a text");
  return value->get<std::string>();
}

std::vector<int64_t> ModelConfig::token_ids(const std::string& key) const {
  const json* value = find(key);
  if (!value) return {};
  std::vector<int64_t> ids;
  for (const json& id : value->is_array() ? *value : json::array({*value})) {
    if (!id.is_number_integer()) reject(key, "a token id or a list of them");
    ids.push_back(id.get<int64_t>());
  }
  return ids;
}

std::vector<std::string> ModelConfig::texts(const std::string& key) const {
  const json* value = find(key);
  if (!value) return {};
  if (!value->is_array()) reject(key, "a list of texts");
  std::vector<std::string> all;
  for (const json& entry : *value) {
    if (!entry.is_string()) reject(key, "a list of texts");
    all.push_back(entry.get<std::string>());
  }
  return all;
}

std::vector<double> ModelConfig::numbers(const std::string& key) const {
  const json* value = find(key);
  if (!value) return {};
  if (!value->is_array()) reject(key, "a list of numbers");
  std::vector<double> all;
  for (const json& entry : *value) {
    if (!entry.is_number()) reject(key, "a list of numbers");
    all.push_back(entry.get<double>());
  }
  return all;
}

std::optional<ModelConfig> ModelConfig::object(const std::string& key) const {
  const json* value = find(key);
  if (!value) return std::nullopt;
  if (!value->is_object()) reject(key, "an object");
  return ModelConfig(where_ + ": " + key, std::shared_ptr<const json>(values_, value));
}

}  // namespace selfcal
