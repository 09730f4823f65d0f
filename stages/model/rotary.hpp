// Rotary position embedding (Su et al., arXiv 2104.09864) with the scalings of long-context models.
#pragma once
#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>

#include "stages/kernels/ops.hpp"
#include "stages/model/config.hpp"

namespace selfcal {

/// What a model's config says of its rotation.
struct RotaryAngles {
  at::Tensor frequencies;  // float32 [dim / 2]
  double magnitude = 1;    // cosines and sines are multiplied by it
  int64_t longest = 0;     // positions for which the frequencies hold; 0: all
};

/// Frequencies of the first `dim` entries of a head, as transformers computes them
/// (modeling_rope_utils: default, linear, dynamic, llama3, yarn, longrope). `scaling`: the object
/// with rope_type and its factors, whose own rope_theta counts before `theta`; absent: no scaling.
/// `dynamic` and `longrope` change their frequencies with the length of a sequence, so that cached
/// decoding would not equal a forward of the whole: they hold up to the length that the model was
/// trained with. Unknown types are ExitCode::data.
RotaryAngles rotary_angles(const ModelConfig& config, const std::optional<ModelConfig>& scaling,
                           int64_t dim, double theta);

/// The same from a config with one rotation: `rope_parameters`, or `rope_theta` and `rope_scaling`
/// as they were before.
RotaryAngles rotary_angles(const ModelConfig& config, int64_t dim, double default_theta = 10000);

/// Angles for all positions met so far. The table grows when a later position comes; entries never
/// change. Used by the one thread that calls operations.
class Rotary {
 public:
  explicit Rotary(RotaryAngles angles) : angles_(std::move(angles)) {}

  /// Rotates heads in place. x: [n, heads, head_dim]; positions: int64 [n], all below `length`.
  void apply(const kernels::Context& context, at::Tensor& x, const at::Tensor& positions,
             int64_t length) const;

 private:
  void grow(int64_t length, const kernels::Device& device) const;

  RotaryAngles angles_;
  mutable at::Tensor cosine_, sine_;  // float32 [positions, dim / 2]
};

}  // namespace selfcal
