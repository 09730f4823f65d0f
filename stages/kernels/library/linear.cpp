#include <ATen/ATen.h>

#include "stages/kernels/library/library_operations.hpp"

namespace selfcal::kernels {
namespace {

constexpr int64_t outputs_together = 8192;  // bounds the memory of a head's widened weight

}  // namespace

/// Products of bfloat16 are summed in float32 by the library itself where the result is bfloat16; a
/// float32 result comes of widened operands, whose products are exact.
at::Tensor library::linear(const Context&, const at::Tensor& x, const at::Tensor& weight,
                           const at::Tensor& bias, std::optional<at::ScalarType> result) {
  const at::ScalarType dtype = result.value_or(x.scalar_type());
  if (dtype == x.scalar_type()) return at::linear(x, weight, bias);
  at::Tensor y = at::empty({x.size(0), weight.size(0)}, x.options().dtype(dtype));
  const at::Tensor wide = x.to(dtype);
  for (int64_t first = 0; first < weight.size(0); first += outputs_together) {
    const int64_t count = std::min(outputs_together, weight.size(0) - first);
    y.narrow(1, first, count).copy_(at::linear(wide, weight.narrow(0, first, count).to(dtype)));
  }
  return bias.defined() ? y.add_(bias) : y;
}

}  // namespace selfcal::kernels
