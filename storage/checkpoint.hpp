// A Hugging Face model directory: config.json and one safetensors file, or several with an index.
#pragma once
#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

#include "storage/tensor_file.hpp"

namespace selfcal {

/// Opened by headers only. Errors (ExitCode::data): no directory, no config.json, no weights,
/// pytorch_model.bin only (names tools/convert_bin), an index that names a missing file, a tensor
/// listed twice.
class Checkpoint {
 public:
  explicit Checkpoint(const fs::path& directory);

  const fs::path& directory() const { return directory_; }
  /// The text of config.json.
  const std::string& config_text() const { return config_text_; }
  bool contains(const std::string& name) const;
  /// Shape and dtype of a tensor without reading it; a missing one is ExitCode::data.
  const TensorEntry& entry(const std::string& name) const;
  /// The file that holds a tensor (for error messages).
  const fs::path& file_of(const std::string& name) const;
  std::vector<std::string> names() const;

  /// Reads a tensor and checks its shape: a mismatch names file, tensor, found and expected.
  at::Tensor read(const std::string& name, const std::vector<int64_t>& expected_shape) const;

  /// Rows [first, first + count) of a tensor's first dimension.
  at::Tensor read_rows(const std::string& name, int64_t first, int64_t count) const;

  /// Hash of config.json and all safetensors headers: the model's identity without reading its
  /// weights.
  std::string identity() const;

 private:
  void add_file(const fs::path& path);
  void add_indexed_files(const fs::path& index);
  const TensorFile& holder(const std::string& name) const;

  fs::path directory_;
  std::string config_text_;
  std::vector<std::shared_ptr<TensorFile>> files_;
  std::map<std::string, size_t> file_of_tensor_;
};

}  // namespace selfcal
