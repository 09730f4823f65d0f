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
                           const std::map<std::string, std::string>& metadata)
    : path_(path), missing_(std::move(plan)) {
  const std::string header = make_tensor_header(missing_, metadata);
  for (const auto& [name, entry] : missing_) data_bytes_ += entry.bytes;
  data_begin_ = 8 + header.size();
  descriptor_ = ::open(path_.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
  if (descriptor_ < 0)
    fail(ExitCode::io, "{}: cannot create: {}", path_.string(), std::strerror(errno));
  try {
    const uint64_t length = header.size();
    write_at(0, &length, sizeof length);
    write_at(8, header.data(), header.size());
  } catch (...) {
    ::close(descriptor_);
    throw;
  }
}

TensorWriter::~TensorWriter() {
  if (descriptor_ >= 0) ::close(descriptor_);
}

TensorPlan::iterator TensorWriter::awaited(const std::string& name, const at::Tensor& tensor,
                                           bool whole) {
  const auto entry = missing_.find(name);
  if (entry == missing_.end())
    fail(ExitCode::internal, "{}: tensor '{}' is not awaited", path_.string(), name);
  auto expected = entry->second.shape;
  if (!whole && !expected.empty() && tensor.dim() > 0)
    expected[0] = std::min(expected[0], tensor.size(0));
  if (tensor.scalar_type() != entry->second.dtype || tensor.sizes() != at::IntArrayRef(expected))
    fail(ExitCode::internal, "{}: tensor '{}' is {} {}, planned as {} {}", path_.string(), name,
         dtype_name(tensor.scalar_type()), shape_text(tensor.sizes().vec()),
         dtype_name(entry->second.dtype), shape_text(entry->second.shape));
  return entry;
}

void TensorWriter::write(const std::string& name, const at::Tensor& tensor) {
  const auto entry = awaited(name, tensor, /*whole=*/true);
  const at::Tensor dense = tensor.contiguous();
  write_at(data_begin_ + entry->second.offset, dense.const_data_ptr(), entry->second.bytes);
  missing_.erase(entry);
}

void TensorWriter::write_rows(const std::string& name, const at::Tensor& rows) {
  const auto entry = awaited(name, rows, /*whole=*/false);
  const at::Tensor dense = rows.contiguous();
  TensorEntry& rest = entry->second;
  write_at(data_begin_ + rest.offset, dense.const_data_ptr(), dense.nbytes());
  rest.offset += dense.nbytes();
  rest.bytes -= dense.nbytes();
  rest.shape[0] -= dense.size(0);
  if (rest.shape[0] == 0) missing_.erase(entry);
}

void TensorWriter::finish() {
  if (!missing_.empty())
    fail(ExitCode::internal, "{}: tensor '{}' was planned but not written", path_.string(),
         missing_.begin()->first);
  const int descriptor = std::exchange(descriptor_, -1);
  const bool synced = ::fsync(descriptor) == 0;
  const int error = errno;
  const bool closed = ::close(descriptor) == 0;
  if (!synced || !closed)
    fail(ExitCode::io, "{}: write failed: {}", path_.string(),
         std::strerror(synced ? errno : error));
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
