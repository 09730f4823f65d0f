// Tensors as the plain pointers of the vector kernels. For .cpp files that include <ATen/ATen.h>.
#pragma once
#include <ATen/core/Tensor.h>

#include "stages/kernels/cpu/tiles.hpp"
#include "stages/kernels/cpu/vector_kernels.hpp"

namespace selfcal::kernels {

inline Number number_of(const at::Tensor& tensor) {
  require(tensor.scalar_type() == at::kFloat || tensor.scalar_type() == at::kBFloat16,
          "kernels compute in float32 or bfloat16, not {}", at::toString(tensor.scalar_type()));
  return tensor.scalar_type() == at::kFloat ? Number::float32 : Number::bfloat16;
}

/// A contiguous matrix, or a vector as one row; no data for an undefined tensor.
inline Matrix matrix_of(const at::Tensor& tensor) {
  if (!tensor.defined()) return {nullptr, Number::float32, 0, 0};
  require(tensor.is_contiguous(), "an operand is not contiguous");
  const int64_t columns = tensor.size(-1);
  return {tensor.const_data_ptr(), number_of(tensor), columns == 0 ? 0 : tensor.numel() / columns,
          columns};
}

/// Number `index` of those that lie one after the other at `data`.
inline const void* at_entry(const void* data, Number number, int64_t index) {
  return static_cast<const char*>(data) + index * (number == Number::float32 ? 4 : 2);
}
inline void* at_entry(void* data, Number number, int64_t index) {
  return static_cast<char*>(data) + index * (number == Number::float32 ? 4 : 2);
}
inline const void* at_entry(const Matrix& matrix, int64_t index) {
  return at_entry(matrix.data, matrix.number, index);
}

}  // namespace selfcal::kernels
