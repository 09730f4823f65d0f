// The element types that a file of ours may hold, and their names in safetensors headers, hashes
// and messages.
#pragma once
#include <ATen/core/Tensor.h>

#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace selfcal {

/// "F32", "BF16", "I64" ...: the names of safetensors. Other types are ExitCode::internal.
std::string_view dtype_name(at::ScalarType dtype);
/// The inverse; empty for a name that is not known.
std::optional<at::ScalarType> dtype_of_name(std::string_view name);
/// All names, for messages.
std::string known_dtypes();

/// "[576, 1536]".
std::string shape_text(const std::vector<int64_t>& shape);

/// A name from a file, safe for a one-line message: control characters and quotes escaped, long
/// names cut.
std::string printable(std::string_view name);

}  // namespace selfcal
