// Safetensors in and out: https://huggingface.co/docs/safetensors. Files are read by parts (pread),
// never mapped.
#pragma once
#include <ATen/core/Tensor.h>

#include <cstdint>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "base/file.hpp"

namespace selfcal {

/// Where a tensor lies in its file.
struct TensorEntry {
  at::ScalarType dtype;
  std::vector<int64_t> shape;
  uint64_t offset = 0;  // bytes from the start of the file
  uint64_t bytes = 0;
};

using NamedTensors = std::map<std::string, at::Tensor>;

/// One safetensors file. The constructor reads and checks the header only; a damaged header,
/// overlapping or out-of-range tensors, or a file shorter than its header says are ExitCode::data
/// with the file and tensor named.
class TensorFile {
 public:
  explicit TensorFile(const fs::path& path);

  const fs::path& path() const { return file_.path(); }
  const std::map<std::string, TensorEntry>& entries() const { return entries_; }
  const std::map<std::string, std::string>& metadata() const { return metadata_; }
  /// XXH3-128 of the header's bytes.
  const std::string& header_hash() const { return header_hash_; }
  bool contains(const std::string& name) const { return entries_.contains(name); }

  /// The tensor, on the CPU, in the file's dtype.
  at::Tensor read(const std::string& name) const;
  /// Rows [first, first + count) of the tensor's first dimension.
  at::Tensor read_rows(const std::string& name, int64_t first, int64_t count) const;

 private:
  const TensorEntry& entry(const std::string& name) const;
  at::Tensor read_bytes(const std::string& name, at::ScalarType dtype,
                        const std::vector<int64_t>& shape, uint64_t offset) const;

  InputFile file_;
  std::map<std::string, TensorEntry> entries_;
  std::map<std::string, std::string> metadata_;
  std::string header_hash_;
};

/// Writes a safetensors file atomically. Tensors are on the CPU; larger element types come first,
/// then by name.
void write_tensor_file(const fs::path& path, const NamedTensors& tensors,
                       const std::map<std::string, std::string>& metadata = {});

}  // namespace selfcal
