// How a tensor enters a content hash: its path, dtype, shape and raw bytes.
#pragma once
#include <ATen/core/Tensor.h>

#include <string>

#include "base/file.hpp"
#include "base/hash.hpp"

namespace selfcal {

/// Adds path, dtype, shape and the bytes in row-major order.
void add_tensor(Hasher& hasher, const std::string& path, const at::Tensor& tensor);
/// Hash of one tensor (dtype, shape, bytes): what a layer file keeps of the dense tensors it came
/// from.
std::string tensor_hash(const at::Tensor& tensor);

/// ExitCode::data naming the file, what was found and what was expected.
void expect_hash(const fs::path& path, const std::string& what, const std::string& found,
                 const std::string& expected);

}  // namespace selfcal
