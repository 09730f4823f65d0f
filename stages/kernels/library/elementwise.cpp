// In float32, rounded to the operands' dtype once, at the end, as our kernels do it.
#include <ATen/ATen.h>

#include "stages/kernels/library/library_operations.hpp"

namespace selfcal::kernels {
namespace {

at::Tensor widened(const at::Tensor& x) { return x.to(at::kFloat); }

at::Tensor activated(Activation activation, const at::Tensor& x) {
  switch (activation) {
    case Activation::silu:
      return at::silu(x);
    case Activation::gelu:
      return at::gelu(x);
    case Activation::gelu_tanh:
      return at::gelu(x, "tanh");
    case Activation::relu:
      return at::relu(x);
  }
  return {};
}

}  // namespace

at::Tensor library::rms_norm(const Context&, const at::Tensor& x, const at::Tensor& weight,
                             double epsilon, double offset) {
  const at::Tensor rows = widened(x);
  const at::Tensor factor = at::rsqrt(rows.square().mean(-1, /*keepdim=*/true) + epsilon);
  return (rows * factor * (widened(weight) + offset)).to(x.scalar_type());
}

at::Tensor library::layer_norm(const Context&, const at::Tensor& x, const at::Tensor& weight,
                               const at::Tensor& bias, double epsilon) {
  const at::Tensor rows = widened(x);
  const at::Tensor centred = rows - rows.mean(-1, /*keepdim=*/true);
  const at::Tensor factor = at::rsqrt(centred.square().mean(-1, /*keepdim=*/true) + epsilon);
  return (centred * factor * widened(weight) + widened(bias)).to(x.scalar_type());
}

at::Tensor library::activate(const Context&, Activation activation, const at::Tensor& x,
                             const at::Tensor& factor) {
  const at::Tensor y = activated(activation, widened(x));
  return (factor.defined() ? y * widened(factor) : y).to(x.scalar_type());
}

void library::soft_cap(const Context&, at::Tensor& x, double cap) { x.div_(cap).tanh_().mul_(cap); }

at::Tensor library::add(const Context&, const at::Tensor& a, const at::Tensor& b) { return a + b; }

at::Tensor library::cross_entropy(const Context&, const at::Tensor& logits,
                                  const at::Tensor& targets) {
  const at::Tensor scores = logits.to(at::kDouble);
  return (at::logsumexp(scores, {1}) - scores.gather(1, targets.unsqueeze(1)).squeeze(1))
      .to(at::kFloat);
}

void library::rotate(const Context&, at::Tensor& x, const at::Tensor& positions,
                     const at::Tensor& cosine, const at::Tensor& sine) {
  const int64_t half = cosine.size(1);
  const auto angles = [&](const at::Tensor& table) {
    return table.index_select(0, positions).unsqueeze(1);  // the same for all heads
  };
  const at::Tensor c = angles(cosine), s = angles(sine);
  at::Tensor first = x.narrow(-1, 0, half), second = x.narrow(-1, half, half);
  const at::Tensor a = first.to(at::kFloat, false, /*copy=*/true),
                   b = second.to(at::kFloat, false, /*copy=*/true);
  first.copy_(a * c - b * s);
  second.copy_(b * c + a * s);
}

void library::append(const Context&, at::Tensor& cache, const at::Tensor& positions,
                     const at::Tensor& rows) {
  const auto first = [&](int64_t count) { return at::arange(count, positions.options()); };
  cache.index_put_(
      {first(cache.size(0)).unsqueeze(1), first(cache.size(1)), positions.unsqueeze(1)}, rows);
}

}  // namespace selfcal::kernels
