// Tensors in their order into safetensors shards, each written as its tensors come.
#pragma once
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "storage/tensor_writer.hpp"

namespace selfcal {

/// Writes model.safetensors, or model-00001-of-00003.safetensors ... and
/// model.safetensors.index.json, into a folder.
class ShardedWriter {
 public:
  /// `plan`: every tensor in the order in which it will be written.
  ShardedWriter(fs::path folder, const std::vector<std::pair<std::string, TensorEntry>>& plan,
                uint64_t shard_bytes);

  /// Tensors must come in the order of the plan.
  void write(const std::string& name, const at::Tensor& tensor);
  /// The next rows of a tensor that comes in parts.
  void write_rows(const std::string& name, const at::Tensor& rows);
  /// Syncs all; writes the index. A tensor that did not come is ExitCode::internal.
  void finish();

 private:
  std::string file_name(size_t shard) const;
  void open_shard(size_t shard);
  TensorWriter& writer_of(const std::string& name);

  fs::path folder_;
  std::vector<TensorPlan> shards_;
  std::map<std::string, size_t> shard_of_;
  std::unique_ptr<TensorWriter> writer_;
  size_t open_ = 0;
};

}  // namespace selfcal
