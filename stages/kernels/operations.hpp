// The operations of ops.hpp as a table: one for each kind of code that can do them. Which one is
// taken is chosen once, with the context's device.
#pragma once
#include "stages/kernels/ops.hpp"

namespace selfcal::kernels {

/// Arguments and results: ops.hpp.
struct Operations {
  at::Tensor (*linear)(const Context&, const at::Tensor& x, const at::Tensor& weight,
                       const at::Tensor& bias, std::optional<at::ScalarType> result);
  at::Tensor (*rms_norm)(const Context&, const at::Tensor& x, const at::Tensor& weight,
                         double epsilon, double offset);
  at::Tensor (*layer_norm)(const Context&, const at::Tensor& x, const at::Tensor& weight,
                           const at::Tensor& bias, double epsilon);
  at::Tensor (*activate)(const Context&, Activation, const at::Tensor& x, const at::Tensor& factor);
  void (*soft_cap)(const Context&, at::Tensor& x, double cap);
  at::Tensor (*add)(const Context&, const at::Tensor& a, const at::Tensor& b);
  at::Tensor (*cross_entropy)(const Context&, const at::Tensor& logits, const at::Tensor& targets);
  void (*rotate)(const Context&, at::Tensor& x, const at::Tensor& positions,
                 const at::Tensor& cosine, const at::Tensor& sine);
  at::Tensor (*causal_attention)(const Context&, const at::Tensor& q, const at::Tensor& k,
                                 const at::Tensor& v, double scale, const AttentionLimits&);
  at::Tensor (*decode_attention)(const Context&, const at::Tensor& q, const at::Tensor& positions,
                                 const at::Tensor& keys, const at::Tensor& values, double scale,
                                 const AttentionLimits&);
  void (*append)(const Context&, at::Tensor& cache, const at::Tensor& positions,
                 const at::Tensor& rows);
};

}  // namespace selfcal::kernels
