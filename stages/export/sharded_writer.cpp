#include "stages/export/sharded_writer.hpp"

#include <fmt/format.h>

#include <nlohmann/json.hpp>

#include "base/error.hpp"

namespace selfcal {
namespace {

const std::map<std::string, std::string> metadata{{"format", "pt"}};

}  // namespace

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
}

std::string ShardedWriter::file_name(size_t shard) const {
  if (shards_.size() == 1) return "model.safetensors";
  return fmt::format("model-{:05}-of-{:05}.safetensors", shard + 1, shards_.size());
}

void ShardedWriter::begin() const {
  for (size_t shard = 0; shard < shards_.size(); ++shard)
    TensorWriter(folder_ / file_name(shard), shards_[shard], metadata).close();
}

TensorWriter& ShardedWriter::writer_of(const std::string& name) {
  const auto found = shard_of_.find(name);
  if (found == shard_of_.end()) fail(ExitCode::internal, "tensor '{}' is not planned", name);
  if (!open_ || found->second != open_shard_) {
    close();
    open_shard_ = found->second;
    open_.emplace(folder_ / file_name(open_shard_), shards_[open_shard_], metadata,
                  TensorWriter::Header::is_there);
  }
  return *open_;
}

void ShardedWriter::write(const std::string& name, const at::Tensor& tensor) {
  writer_of(name).write(name, tensor);
}

void ShardedWriter::write_rows(const std::string& name, int64_t first, const at::Tensor& rows) {
  writer_of(name).write_rows(name, first, rows);
}

uint64_t ShardedWriter::close() {
  if (open_) written_ += open_->close();
  open_.reset();
  return written_;
}

void ShardedWriter::finish(uint64_t written) const {
  uint64_t bytes = 0;
  nlohmann::ordered_json weight_map = nlohmann::ordered_json::object();
  for (const auto& [name, shard] : shard_of_) {
    bytes += shards_[shard].at(name).bytes;
    weight_map[name] = file_name(shard);
  }
  if (written != bytes)
    fail(ExitCode::internal, "{}: {} bytes of tensors were planned, {} written", folder_.string(),
         bytes, written);
  if (shards_.size() == 1) return;
  const nlohmann::ordered_json index{{"metadata", {{"total_size", bytes}}},
                                     {"weight_map", weight_map}};
  write_text_atomically(folder_ / "model.safetensors.index.json", index.dump(2) + "\n");
}

}  // namespace selfcal
