// The JSON header of a safetensors file, parsed without building a tree: any bytes give a result or
// one clear error.
#pragma once
#include <map>
#include <string>
#include <string_view>

#include "storage/tensor_file.hpp"

namespace selfcal {

struct TensorHeader {
  std::map<std::string, TensorEntry> entries;  // offsets from the start of the tensor data
  std::map<std::string, std::string> metadata;
};

/// Checks names, dtypes, shapes (arithmetic that cannot overflow) and that the tensors tile
/// `data_bytes` without holes or overlap. ExitCode::data, beginning with `file`.
TensorHeader parse_tensor_header(std::string_view text, uint64_t data_bytes,
                                 const std::string& file);

/// The header's text, padded with spaces to a multiple of 8 bytes. Assigns the entries' offsets:
/// larger element types first, then by name, so that every tensor is aligned (as the reference
/// implementation does).
std::string make_tensor_header(std::map<std::string, TensorEntry>& entries,
                               const std::map<std::string, std::string>& metadata);

}  // namespace selfcal
