#include <ATen/ATen.h>

#include "stages/kernels/cpu/cpu_operations.hpp"
#include "stages/kernels/cpu/few_rows.hpp"
#include "stages/kernels/cpu/tiled_linear.hpp"
#include "stages/kernels/cpu/tiles.hpp"

namespace selfcal::kernels {

at::Tensor cpu::linear(const Context& context, const at::Tensor& x, const at::Tensor& weight,
                       const at::Tensor& bias, std::optional<at::ScalarType> result) {
  require(x.dim() == 2 && weight.dim() == 2 && x.size(1) == weight.size(1) &&
              x.scalar_type() == weight.scalar_type(),
          "linear: {} columns of {} times a weight of {} columns of {}", x.size(-1),
          at::toString(x.scalar_type()), weight.size(-1), at::toString(weight.scalar_type()));
  require(
      !bias.defined() || (bias.numel() == weight.size(0) && bias.scalar_type() == x.scalar_type()),
      "linear: a bias of {} entries for {} outputs", bias.defined() ? bias.numel() : 0,
      weight.size(0));
  if (x.size(0) <= few_rows)
    return linear_few_rows(context, x.contiguous(), weight.contiguous(), bias, result);
  return linear_tiled(context, x, weight, bias, result,
                      best_products(x.size(1), x.scalar_type(), result.value_or(x.scalar_type())));
}

}  // namespace selfcal::kernels
