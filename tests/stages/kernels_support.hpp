// What the tests of kernels draw.
#pragma once
#include <ATen/ATen.h>

namespace selfcal::kernels {

inline constexpr at::ScalarType dtypes[] = {at::kFloat, at::kBFloat16};

inline at::Tensor random(at::IntArrayRef shape, at::ScalarType dtype) {
  return at::randn(shape).to(dtype);
}

inline at::Tensor wide(const at::Tensor& tensor) { return tensor.to(at::kDouble); }

}  // namespace selfcal::kernels
