// A plain version, until the kernel of the generator takes its place.
#include <ATen/ATen.h>

#include "stages/kernels/ops.hpp"

namespace selfcal::kernels {

at::Tensor decode_attention(const Context& context, const at::Tensor& q,
                            const at::Tensor& positions, const at::Tensor& keys,
                            const at::Tensor& values, double scale) {
  const int64_t sequences = q.size(0), groups = keys.size(1), head_dim = q.size(2);
  at::Tensor result = at::empty_like(q);
  for (int64_t s = 0; s < sequences; ++s) {
    const int64_t length = positions[s].item<int64_t>() + 1;
    const auto k = keys[s].slice(1, 0, length).to(at::kFloat),
               v = values[s].slice(1, 0, length).to(at::kFloat);
    const auto scores =
        at::matmul(q[s].to(at::kFloat).view({groups, -1, head_dim}), k.transpose(1, 2)) * scale;
    result[s].copy_(at::matmul(scores.softmax(-1), v).view({-1, head_dim}));
  }
  return result;
}

}  // namespace selfcal::kernels
