#include "storage/tensor_writer.hpp"

#include <ATen/ATen.h>
#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <cerrno>
#include <cstring>

#include "base/error.hpp"
#include "storage/dtype.hpp"
#include "storage/tensor_header.hpp"

namespace selfcal {

static_assert(std::endian::native == std::endian::little, "safetensors data is little-endian");

TensorEntry planned(at::ScalarType dtype, std::vector<int64_t> shape) {
  uint64_t bytes = c10::elementSize(dtype);
  for (const int64_t size : shape) bytes *= static_cast<uint64_t>(size);
  return {dtype, std::move(shape), 0, bytes};
}

TensorWriter::TensorWriter(const fs::path& path, TensorPlan plan,
                           const std::map<std::string, std::string>& metadata, Header header)
    : path_(path), plan_(std::move(plan)) {
  const std::string text = make_tensor_header(plan_, metadata);
  for (const auto& [name, entry] : plan_) data_bytes_ += entry.bytes;
  data_begin_ = 8 + text.size();
  const int flags = header == Header::write ? O_CREAT | O_TRUNC : 0;
  descriptor_ = ::open(path_.c_str(), O_WRONLY | O_CLOEXEC | flags, 0644);
  if (descriptor_ < 0)
    fail(ExitCode::io, "{}: cannot {}: {}", path_.string(),
         header == Header::write ? "create" : "open", std::strerror(errno));
  if (header == Header::is_there) return;
  try {
    const uint64_t length = text.size();
    write_at(0, &length, sizeof length);
    write_at(8, text.data(), text.size());
  } catch (...) {
    ::close(descriptor_);
    throw;
  }
}

TensorWriter::~TensorWriter() {
  if (descriptor_ >= 0) ::close(descriptor_);
}

void TensorWriter::write(const std::string& name, const at::Tensor& tensor) {
  const TensorEntry& entry = planned_entry(name);
  expect_planned(name, entry, tensor, entry.shape);
  write_tensor(entry.offset, tensor);
}

void TensorWriter::write_rows(const std::string& name, int64_t first, const at::Tensor& rows) {
  const TensorEntry& entry = planned_entry(name);
  const int64_t count = rows.dim() == 0 ? 0 : rows.size(0),
                all = entry.shape.empty() ? 0 : entry.shape[0];
  if (first < 0 || first > all - count)
    fail(ExitCode::internal, "{}: tensor '{}' has no rows {} to {}", path_.string(), name, first,
         first + count);
  std::vector<int64_t> shape = entry.shape;
  if (!shape.empty()) shape[0] = count;
  expect_planned(name, entry, rows, shape);
  if (count > 0)
    write_tensor(
        entry.offset + entry.bytes / static_cast<uint64_t>(all) * static_cast<uint64_t>(first),
        rows);
}

uint64_t TensorWriter::close() {
  const int descriptor = std::exchange(descriptor_, -1);
  const bool synced = ::fsync(descriptor) == 0;
  const int error = errno;
  const bool closed = ::close(descriptor) == 0;
  if (!synced || !closed)
    fail(ExitCode::io, "{}: write failed: {}", path_.string(),
         std::strerror(synced ? errno : error));
  return written_;
}

void TensorWriter::finish() {
  if (written_ != data_bytes_)
    fail(ExitCode::internal, "{}: {} bytes of tensors were planned, {} written", path_.string(),
         data_bytes_, written_);
  close();
}

const TensorEntry& TensorWriter::planned_entry(const std::string& name) const {
  const auto entry = plan_.find(name);
  if (entry == plan_.end())
    fail(ExitCode::internal, "{}: tensor '{}' is not planned", path_.string(), name);
  return entry->second;
}

void TensorWriter::expect_planned(const std::string& name, const TensorEntry& entry,
                                  const at::Tensor& tensor,
                                  const std::vector<int64_t>& shape) const {
  if (tensor.scalar_type() != entry.dtype || tensor.sizes() != at::IntArrayRef(shape))
    fail(ExitCode::internal, "{}: tensor '{}' is {} {}, planned as {} {}", path_.string(), name,
         dtype_name(tensor.scalar_type()), shape_text(tensor.sizes().vec()),
         dtype_name(entry.dtype), shape_text(entry.shape));
}

void TensorWriter::write_tensor(uint64_t offset, const at::Tensor& tensor) {
  const at::Tensor dense = tensor.contiguous();
  write_at(data_begin_ + offset, dense.const_data_ptr(), dense.nbytes());
  written_ += dense.nbytes();
}

void TensorWriter::write_at(uint64_t offset, const void* data, size_t bytes) {
  const char* next = static_cast<const char*>(data);
  while (bytes > 0) {
    const ssize_t put = ::pwrite(descriptor_, next, bytes, static_cast<off_t>(offset));
    if (put < 0 && errno == EINTR) continue;
    if (put < 0)
      fail(ExitCode::io, "{}: write failed at byte {}: {}", path_.string(), offset,
           std::strerror(errno));
    next += put;
    bytes -= static_cast<size_t>(put);
    offset += static_cast<uint64_t>(put);
  }
}

}  // namespace selfcal
