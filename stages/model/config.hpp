// config.json of a Hugging Face model directory: typed access to its keys, with errors that name
// file, key and value.
#pragma once
#include <cstdint>
#include <filesystem>
#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <vector>

namespace selfcal {

/// One JSON object: the whole file or a nested one. Every error is ExitCode::data. A key that is
/// null counts as absent.
class ModelConfig {
 public:
  ModelConfig(const std::filesystem::path& path, const std::string& text);

  bool contains(const std::string& key) const;
  /// Whole numbers are positive.
  int64_t integer(const std::string& key) const;
  int64_t integer(const std::string& key, int64_t otherwise) const;
  /// From 0 on.
  int64_t whole_number(const std::string& key, int64_t otherwise) const;
  double number(const std::string& key) const;
  double number(const std::string& key, double otherwise) const;
  bool flag(const std::string& key, bool otherwise) const;
  std::string text(const std::string& key, const std::string& otherwise) const;
  /// Entries of a list, one value without brackets, or none.
  std::vector<int64_t> token_ids(const std::string& key) const;
  std::vector<std::string> texts(const std::string& key) const;
  std::vector<double> numbers(const std::string& key) const;
  /// A nested object; empty where the key is absent.
  std::optional<ModelConfig> object(const std::string& key) const;

  /// "dir/config.json" or "dir/config.json: rope_scaling".
  const std::string& where() const { return where_; }

 private:
  ModelConfig(std::string where, std::shared_ptr<const nlohmann::json> values);
  const nlohmann::json* find(const std::string& key) const;
  [[noreturn]] void reject(const std::string& key, const char* expected) const;
  [[noreturn]] void reject_missing(const std::string& key) const;

  std::string where_;
  std::shared_ptr<const nlohmann::json> values_;
};

}  // namespace selfcal
