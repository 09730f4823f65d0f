// The linear layer of decoding: so few rows that the weights' way through memory counts as much as
// the arithmetic.
#pragma once
#include "stages/kernels/ops.hpp"

namespace selfcal::kernels {

/// y = x W^T + bias for any number of rows (meant for up to `few_rows`). x: [n, in]; weight: [out,
/// in], read as it lies; bias: [out] or undefined; each float32 or bfloat16. Sums in float32,
/// rounded once to `result` (default: x's dtype). A row's bits depend on that row and the weights
/// only.
at::Tensor linear_few_rows(const Context& context, const at::Tensor& x, const at::Tensor& weight,
                           const at::Tensor& bias = {}, std::optional<at::ScalarType> result = {});

}  // namespace selfcal::kernels
