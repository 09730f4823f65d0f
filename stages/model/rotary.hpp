// Rotary position embedding (Su et al., arXiv 2104.09864) with the scalings of long-context models.
#pragma once
#include <ATen/core/Tensor.h>

#include <cstdint>

#include "stages/kernels/ops.hpp"
#include "stages/model/config.hpp"

namespace selfcal {

/// Inverse frequencies float32 [dim / 2], as transformers computes them (modeling_rope_utils:
/// default, linear, llama3), from `rope_parameters`, or from `rope_theta` and `rope_scaling`. Other
/// scalings are ExitCode::data.
at::Tensor inverse_frequencies(const ModelConfig& config, int64_t dim,
                               double default_theta = 10000);

/// Angles for all positions met so far. The table grows when a later position comes; entries never
/// change. Used by the one thread that calls operations.
class Rotary {
 public:
  explicit Rotary(at::Tensor inverse_frequencies) : frequencies_(std::move(inverse_frequencies)) {}

  /// Rotates heads in place. x: [n, heads, head_dim]; positions: int64 [n], all below `length`.
  void apply(const kernels::Context& context, at::Tensor& x, const at::Tensor& positions,
             int64_t length) const;

 private:
  void grow(int64_t length) const;

  at::Tensor frequencies_;
  mutable at::Tensor cosine_, sine_;  // float32 [positions, dim / 2]
};

}  // namespace selfcal
