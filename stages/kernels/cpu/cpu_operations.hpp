// The operations of ops.hpp by our kernels: vector code in fixed tiles, host memory.
#pragma once
#include "stages/kernels/operations.hpp"

namespace selfcal::kernels::cpu {

at::Tensor linear(const Context& context, const at::Tensor& x, const at::Tensor& weight,
                  const at::Tensor& bias, std::optional<at::ScalarType> result);
at::Tensor rms_norm(const Context& context, const at::Tensor& x, const at::Tensor& weight,
                    double epsilon, double offset);
at::Tensor layer_norm(const Context& context, const at::Tensor& x, const at::Tensor& weight,
                      const at::Tensor& bias, double epsilon);
at::Tensor activate(const Context& context, Activation activation, const at::Tensor& x,
                    const at::Tensor& factor);
void soft_cap(const Context& context, at::Tensor& x, double cap);
at::Tensor add(const Context& context, const at::Tensor& a, const at::Tensor& b);
at::Tensor cross_entropy(const Context& context, const at::Tensor& logits,
                         const at::Tensor& targets);
void rotate(const Context& context, at::Tensor& x, const at::Tensor& positions,
            const at::Tensor& cosine, const at::Tensor& sine);
at::Tensor causal_attention(const Context& context, const at::Tensor& q, const at::Tensor& k,
                            const at::Tensor& v, double scale, const AttentionLimits& limits);
at::Tensor decode_attention(const Context& context, const at::Tensor& q,
                            const at::Tensor& positions, const at::Tensor& keys,
                            const at::Tensor& values, double scale, const AttentionLimits& limits);
void append(const Context& context, at::Tensor& cache, const at::Tensor& positions,
            const at::Tensor& rows);

}  // namespace selfcal::kernels::cpu
