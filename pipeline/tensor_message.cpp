#include "pipeline/tensor_message.hpp"

#include <ATen/ATen.h>
#include <c10/util/accumulate.h>

#include <algorithm>
#include <cstring>
#include <utility>

#include "base/error.hpp"

namespace selfcal {
namespace {

/// Where the entries of a tensor begin, so that a view of them is aligned.
constexpr size_t alignment = 64;

size_t aligned(size_t position) { return (position + alignment - 1) / alignment * alignment; }

/// Counts the bytes, and writes them where there is room.
class Writer {
 public:
  explicit Writer(std::span<std::byte> into = {}) : into_(into) {}
  size_t position() const { return position_; }
  void number(int64_t value) { raw(&value, sizeof value); }
  void raw(const void* data, size_t size) {
    if (size > 0 && !into_.empty()) std::memcpy(into_.data() + position_, data, size);
    position_ += size;
  }
  void align() { position_ = aligned(position_); }

 private:
  std::span<std::byte> into_;
  size_t position_ = 0;
};

class Reader {
 public:
  explicit Reader(std::span<const std::byte> in) : in_(in) {}
  bool empty() const { return position_ >= in_.size(); }
  size_t position() const { return position_; }
  int64_t number() {
    int64_t value = 0;
    raw(&value, sizeof value);
    return value;
  }
  void raw(void* into, size_t size) {
    const size_t from = skip(size);
    if (size > 0) std::memcpy(into, in_.data() + from, size);
  }
  /// Where the next `size` bytes begin.
  size_t skip(size_t size) {
    if (position_ + size > in_.size())
      fail(ExitCode::internal, "tensor message ends early: {} bytes, {} needed", in_.size(),
           position_ + size);
    return std::exchange(position_, position_ + size);
  }
  void align() { position_ = aligned(position_); }

 private:
  std::span<const std::byte> in_;
  size_t position_ = 0;
};

void write(const std::map<std::string, at::Tensor>& tensors, Writer& writer) {
  for (const auto& [name, given] : tensors) {
    const at::Tensor tensor = given.contiguous();
    writer.number(static_cast<int64_t>(name.size()));
    writer.raw(name.data(), name.size());
    writer.number(static_cast<int64_t>(tensor.scalar_type()));
    writer.number(tensor.dim());
    for (const int64_t extent : tensor.sizes()) writer.number(extent);
    writer.align();
    const auto bytes = bytes_of(tensor);
    writer.raw(bytes.data(), bytes.size());
  }
}

/// Calls take(name, dtype, shape, first byte of the entries) for each tensor.
template <class Take>
void read(std::span<const std::byte> message, Take take) {
  Reader reader(message);
  while (!reader.empty()) {
    std::string name(static_cast<size_t>(reader.number()), '\0');
    reader.raw(name.data(), name.size());
    const auto dtype = static_cast<at::ScalarType>(reader.number());
    std::vector<int64_t> shape(static_cast<size_t>(reader.number()));
    for (auto& extent : shape) extent = reader.number();
    reader.align();
    const auto entries = static_cast<size_t>(c10::multiply_integers(shape));
    take(name, dtype, shape, reader.skip(entries * c10::elementSize(dtype)));
  }
}

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
  std::vector<std::byte> message(packed_bytes(tensors));
  pack_tensors(tensors, message);
  return message;
}

size_t packed_bytes(const std::map<std::string, at::Tensor>& tensors) {
  Writer writer;
  write(tensors, writer);
  return writer.position();
}

void pack_tensors(const std::map<std::string, at::Tensor>& tensors, std::span<std::byte> into) {
  Writer writer(into);
  write(tensors, writer);
}

std::map<std::string, at::Tensor> unpack_tensors(std::span<const std::byte> message) {
  std::map<std::string, at::Tensor> tensors;
  read(message, [&](const auto& name, auto dtype, const auto& shape, size_t first) {
    const at::Tensor tensor = at::empty(shape, dtype);
    std::ranges::copy(message.subspan(first, tensor.nbytes()), bytes_of(tensor).begin());
    tensors.emplace(name, tensor);
  });
  return tensors;
}

std::map<std::string, at::Tensor> view_tensors(const at::Tensor& message) {
  std::map<std::string, at::Tensor> tensors;
  read(bytes_of(message), [&](const auto& name, auto dtype, const auto& shape, size_t first) {
    const auto bytes =
        c10::multiply_integers(shape) * static_cast<int64_t>(c10::elementSize(dtype));
    tensors.emplace(name,
                    message.narrow(0, static_cast<int64_t>(first), bytes).view(dtype).view(shape));
  });
  return tensors;
}

}  // namespace selfcal
