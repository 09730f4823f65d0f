// Tensors as bytes: views for messages of known shape, and self-describing bundles for the rest.
#pragma once
#include <ATen/core/Tensor.h>

#include <cstddef>
#include <map>
#include <span>
#include <string>
#include <vector>

#include "comm/device_buffer.hpp"

namespace selfcal {

/// The bytes of a contiguous CPU tensor (which must outlive the view).
std::span<std::byte> bytes_of(const at::Tensor& tensor);

/// The same of a contiguous tensor in a device's memory, behind what is queued on the default
/// stream: nothing here computes on another.
DeviceBuffer device_bytes_of(const at::Tensor& tensor);

/// Names, dtypes, shapes and contents in one run of bytes. Both sides run the same binary on the
/// same kind of machine.
std::vector<std::byte> pack_tensors(const std::map<std::string, at::Tensor>& tensors);
std::map<std::string, at::Tensor> unpack_tensors(std::span<const std::byte> message);

// The same without copies between.
size_t packed_bytes(const std::map<std::string, at::Tensor>& tensors);
/// into: packed_bytes().
void pack_tensors(const std::map<std::string, at::Tensor>& tensors, std::span<std::byte> into);
/// message: uint8 [bytes]; the tensors are views of it.
std::map<std::string, at::Tensor> view_tensors(const at::Tensor& message);

}  // namespace selfcal
