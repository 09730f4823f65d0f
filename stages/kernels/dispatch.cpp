// The one place where an operation finds its code.
#include "stages/kernels/cpu/cpu_operations.hpp"
#include "stages/kernels/library/library_operations.hpp"

namespace selfcal::kernels {

const Operations cpu_operations{cpu::linear,           cpu::rms_norm, cpu::layer_norm,
                                cpu::activate,         cpu::soft_cap, cpu::add,
                                cpu::cross_entropy,    cpu::rotate,   cpu::causal_attention,
                                cpu::decode_attention, cpu::append};
const Operations library_operations{
    library::linear,           library::rms_norm, library::layer_norm,
    library::activate,         library::soft_cap, library::add,
    library::cross_entropy,    library::rotate,   library::causal_attention,
    library::decode_attention, library::append};

at::Tensor linear(const Context& context, const at::Tensor& x, const at::Tensor& weight,
                  const at::Tensor& bias, std::optional<at::ScalarType> result) {
  return context.device.operations->linear(context, x, weight, bias, result);
}

at::Tensor rms_norm(const Context& context, const at::Tensor& x, const at::Tensor& weight,
                    double epsilon, double offset) {
  return context.device.operations->rms_norm(context, x, weight, epsilon, offset);
}

at::Tensor layer_norm(const Context& context, const at::Tensor& x, const at::Tensor& weight,
                      const at::Tensor& bias, double epsilon) {
  return context.device.operations->layer_norm(context, x, weight, bias, epsilon);
}

at::Tensor activate(const Context& context, Activation activation, const at::Tensor& x,
                    const at::Tensor& factor) {
  return context.device.operations->activate(context, activation, x, factor);
}

void soft_cap(const Context& context, at::Tensor& x, double cap) {
  context.device.operations->soft_cap(context, x, cap);
}

at::Tensor add(const Context& context, const at::Tensor& a, const at::Tensor& b) {
  return context.device.operations->add(context, a, b);
}

at::Tensor cross_entropy(const Context& context, const at::Tensor& logits,
                         const at::Tensor& targets) {
  return context.device.operations->cross_entropy(context, logits, targets);
}

void rotate(const Context& context, at::Tensor& x, const at::Tensor& positions,
            const at::Tensor& cosine, const at::Tensor& sine) {
  context.device.operations->rotate(context, x, positions, cosine, sine);
}

at::Tensor causal_attention(const Context& context, const at::Tensor& q, const at::Tensor& k,
                            const at::Tensor& v, double scale, const AttentionLimits& limits) {
  return context.device.operations->causal_attention(context, q, k, v, scale, limits);
}

at::Tensor decode_attention(const Context& context, const at::Tensor& q,
                            const at::Tensor& positions, const at::Tensor& keys,
                            const at::Tensor& values, double scale, const AttentionLimits& limits) {
  return context.device.operations->decode_attention(context, q, positions, keys, values, scale,
                                                     limits);
}

void append(const Context& context, at::Tensor& cache, const at::Tensor& positions,
            const at::Tensor& rows) {
  context.device.operations->append(context, cache, positions, rows);
}

}  // namespace selfcal::kernels
