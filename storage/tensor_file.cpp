#include "storage/tensor_file.hpp"

#include <ATen/ATen.h>

#include <algorithm>
#include <cstring>

#include "base/error.hpp"
#include "base/hash.hpp"
#include "storage/dtype.hpp"
#include "storage/tensor_header.hpp"
#include "storage/tensor_writer.hpp"

namespace selfcal {
namespace {

/// The reference implementation's cap: a longer header is an attack or not a safetensors file.
constexpr uint64_t longest_header = 100'000'000;

}  // namespace

TensorFile::TensorFile(const fs::path& path) : file_(path) {
  const std::string name = path.string();
  if (file_.size() < 8)
    fail(ExitCode::data,
         "{}: {} bytes, too short for a safetensors file (8 bytes of header length)", name,
         file_.size());
  uint64_t length = 0;
  file_.read_at(0, std::as_writable_bytes(std::span(&length, 1)));
  if (length > longest_header)
    fail(ExitCode::data, "{}: not a safetensors file: header length {}, expected at most {}", name,
         length, longest_header);
  if (length > file_.size() - 8)
    fail(ExitCode::data, "{}: truncated: header of {} bytes, only {} follow", name, length,
         file_.size() - 8);
  std::string text(length, '\0');
  file_.read_at(8, std::as_writable_bytes(std::span(text)));
  header_hash_ = Hasher().bytes(text.data(), text.size()).digest();
  TensorHeader header = parse_tensor_header(text, file_.size() - 8 - length, name);
  entries_ = std::move(header.entries);
  metadata_ = std::move(header.metadata);
  for (auto& [tensor, entry] : entries_) entry.offset += 8 + length;
}

const TensorEntry& TensorFile::entry(const std::string& name) const {
  const auto found = entries_.find(name);
  if (found == entries_.end())
    fail(ExitCode::data, "{}: no tensor '{}'", path().string(), printable(name));
  return found->second;
}

at::Tensor TensorFile::read(const std::string& name) const {
  const TensorEntry& tensor = entry(name);
  return read_bytes(name, tensor.dtype, tensor.shape, tensor.offset);
}

at::Tensor TensorFile::read_rows(const std::string& name, int64_t first, int64_t count) const {
  const TensorEntry& tensor = entry(name);
  const int64_t rows = tensor.shape.empty() ? 0 : tensor.shape[0];
  if (tensor.shape.empty() || first < 0 || count < 0 || first > rows || count > rows - first)
    fail(ExitCode::data, "{}: tensor '{}' {} has no rows {} to {}", path().string(),
         printable(name), shape_text(tensor.shape), first, first + count);
  const uint64_t row_bytes = rows == 0 ? 0 : tensor.bytes / static_cast<uint64_t>(rows);
  std::vector<int64_t> shape = tensor.shape;
  shape[0] = count;
  return read_bytes(name, tensor.dtype, shape,
                    tensor.offset + static_cast<uint64_t>(first) * row_bytes);
}

at::Tensor TensorFile::read_bytes(const std::string& name, at::ScalarType dtype,
                                  const std::vector<int64_t>& shape, uint64_t offset) const {
  at::Tensor tensor = at::empty(shape, dtype);
  const std::span bytes(static_cast<std::byte*>(tensor.data_ptr()), tensor.nbytes());
  try {
    file_.read_at(offset, bytes);
  } catch (const Error& error) {
    fail(error.code(), "{} (tensor '{}')", error.what(), printable(name));
  }
  if (dtype == at::kBool &&
      std::any_of(bytes.begin(), bytes.end(), [](std::byte b) { return b > std::byte{1}; }))
    fail(ExitCode::data, "{}: tensor '{}': a BOOL byte is neither 0 nor 1", path().string(),
         printable(name));
  return tensor;
}

void write_tensor_file(const fs::path& path, const NamedTensors& tensors,
                       const std::map<std::string, std::string>& metadata) {
  write_atomically(path, [&](const fs::path& temporary) {
    TensorPlan plan;
    for (const auto& [name, tensor] : tensors)
      plan.emplace(name, planned(tensor.scalar_type(), tensor.sizes().vec()));
    TensorWriter writer(temporary, std::move(plan), metadata);
    for (const auto& [name, tensor] : tensors) writer.write(name, tensor);
    writer.finish();
  });
}

}  // namespace selfcal
