#include "pipeline/tensor_message.hpp"

#include <ATen/ATen.h>

#include <cstring>

#include "base/error.hpp"

namespace selfcal {
namespace {

class Writer {
 public:
  explicit Writer(std::vector<std::byte>& out) : out_(out) {}
  void number(int64_t value) { raw(&value, sizeof value); }
  void raw(const void* data, size_t size) {
    const auto* bytes = static_cast<const std::byte*>(data);
    out_.insert(out_.end(), bytes, bytes + size);
  }

 private:
  std::vector<std::byte>& out_;
};

class Reader {
 public:
  explicit Reader(std::span<const std::byte> in) : in_(in) {}
  bool empty() const { return in_.empty(); }
  int64_t number() {
    int64_t value = 0;
    raw(&value, sizeof value);
    return value;
  }
  void raw(void* into, size_t size) {
    if (size > in_.size())
      fail(ExitCode::internal, "tensor message ends early: {} bytes left, {} needed", in_.size(),
           size);
    if (size > 0) std::memcpy(into, in_.data(), size);
    in_ = in_.subspan(size);
  }

 private:
  std::span<const std::byte> in_;
};

}  // namespace

std::span<std::byte> bytes_of(const at::Tensor& tensor) {
  TORCH_INTERNAL_ASSERT(tensor.is_contiguous() && tensor.is_cpu());
  return {static_cast<std::byte*>(tensor.data_ptr()), tensor.nbytes()};
}

DeviceBuffer device_bytes_of(const at::Tensor& tensor) {
  TORCH_INTERNAL_ASSERT(tensor.is_contiguous());
  return {tensor.data_ptr(), static_cast<int64_t>(tensor.nbytes()),
          tensor.is_cpu() ? 0 : tensor.device().index(), nullptr};
}

std::vector<std::byte> pack_tensors(const std::map<std::string, at::Tensor>& tensors) {
  std::vector<std::byte> message;
  Writer writer(message);
  for (const auto& [name, given] : tensors) {
    const at::Tensor tensor = given.contiguous();
    writer.number(static_cast<int64_t>(name.size()));
    writer.raw(name.data(), name.size());
    writer.number(static_cast<int64_t>(tensor.scalar_type()));
    writer.number(tensor.dim());
    for (const int64_t extent : tensor.sizes()) writer.number(extent);
    const auto bytes = bytes_of(tensor);
    writer.raw(bytes.data(), bytes.size());
  }
  return message;
}

std::map<std::string, at::Tensor> unpack_tensors(std::span<const std::byte> message) {
  std::map<std::string, at::Tensor> tensors;
  Reader reader(message);
  while (!reader.empty()) {
    std::string name(static_cast<size_t>(reader.number()), '\0');
    reader.raw(name.data(), name.size());
    const auto dtype = static_cast<at::ScalarType>(reader.number());
    std::vector<int64_t> shape(static_cast<size_t>(reader.number()));
    for (auto& extent : shape) extent = reader.number();
    at::Tensor tensor = at::empty(shape, dtype);
    const auto bytes = bytes_of(tensor);
    reader.raw(bytes.data(), bytes.size());
    tensors.emplace(std::move(name), std::move(tensor));
  }
  return tensors;
}

}  // namespace selfcal
