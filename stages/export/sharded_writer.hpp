// Tensors into safetensors shards, by one process or several.
#pragma once
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "storage/tensor_writer.hpp"

namespace selfcal {

/// Writes model.safetensors, or model-00001-of-00003.safetensors ... and
/// model.safetensors.index.json, into a folder. Processes with the same plan may each write some of
/// the tensors or rows; one of them begins and finishes.
class ShardedWriter {
 public:
  /// `plan`: every tensor, in the order in which they fill the shards. One of more than
  /// `shard_bytes` stands alone.
  ShardedWriter(fs::path folder, const std::vector<std::pair<std::string, TensorEntry>>& plan,
                uint64_t shard_bytes);

  /// Makes all shards: before anything is written to one.
  void begin() const;
  /// Fastest in the order of the plan: one shard is open at a time.
  void write(const std::string& name, const at::Tensor& tensor);
  /// Rows [first, first + n) of a tensor.
  void write_rows(const std::string& name, int64_t first, const at::Tensor& rows);
  /// Syncs what was written here; returns its bytes.
  uint64_t close();
  /// Writes the index; `written`: what all processes have written. If that is not what was planned
  /// ExitCode::internal.
  void finish(uint64_t written) const;

 private:
  std::string file_name(size_t shard) const;
  TensorWriter& writer_of(const std::string& name);

  fs::path folder_;
  std::vector<TensorPlan> shards_;
  std::map<std::string, size_t> shard_of_;
  std::optional<TensorWriter> open_;
  size_t open_shard_ = 0;
  uint64_t written_ = 0;
};

}  // namespace selfcal
