#include "stages/export/sharded_writer.hpp"

#include <fmt/format.h>

#include <nlohmann/json.hpp>

#include "base/error.hpp"

namespace selfcal {

ShardedWriter::ShardedWriter(fs::path folder,
                             const std::vector<std::pair<std::string, TensorEntry>>& plan,
                             uint64_t shard_bytes)
    : folder_(std::move(folder)), shards_(1) {
  uint64_t held = 0;
  for (const auto& [name, entry] : plan) {
    if (held > 0 && held + entry.bytes > shard_bytes) {
      shards_.emplace_back();
      held = 0;
    }
    held += entry.bytes;
    if (!shard_of_.emplace(name, shards_.size() - 1).second)
      fail(ExitCode::data, "tensor '{}' is in the export twice", name);
    shards_.back().emplace(name, entry);
  }
  open_shard(0);
}

std::string ShardedWriter::file_name(size_t shard) const {
  if (shards_.size() == 1) return "model.safetensors";
  return fmt::format("model-{:05}-of-{:05}.safetensors", shard + 1, shards_.size());
}

void ShardedWriter::open_shard(size_t shard) {
  if (writer_) writer_->finish();
  open_ = shard;
  writer_ = std::make_unique<TensorWriter>(folder_ / file_name(shard), shards_[shard],
                                           std::map<std::string, std::string>{{"format", "pt"}});
}

TensorWriter& ShardedWriter::writer_of(const std::string& name) {
  const auto found = shard_of_.find(name);
  if (found == shard_of_.end()) fail(ExitCode::internal, "tensor '{}' is not planned", name);
  if (found->second != open_) open_shard(found->second);
  return *writer_;
}

void ShardedWriter::write(const std::string& name, const at::Tensor& tensor) {
  writer_of(name).write(name, tensor);
}

void ShardedWriter::write_rows(const std::string& name, const at::Tensor& rows) {
  writer_of(name).write_rows(name, rows);
}

void ShardedWriter::finish() {
  writer_->finish();
  if (open_ + 1 != shards_.size())
    fail(ExitCode::internal, "{} is not written", file_name(open_ + 1));
  if (shards_.size() == 1) return;
  uint64_t bytes = 0;
  nlohmann::ordered_json weight_map = nlohmann::ordered_json::object();
  for (const auto& [name, shard] : shard_of_) {
    bytes += shards_[shard].at(name).bytes;
    weight_map[name] = file_name(shard);
  }
  const nlohmann::ordered_json index{{"metadata", {{"total_size", bytes}}},
                                     {"weight_map", weight_map}};
  write_text_atomically(folder_ / "model.safetensors.index.json", index.dump(2) + "\n");
}

}  // namespace selfcal
