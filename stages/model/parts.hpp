// The parts that decoder blocks are put together from. A part declares its tensors and linear
// layers, and computes with weights that it is given.
#pragma once
#include <memory>

#include "stages/model/block.hpp"
#include "stages/model/rotary.hpp"

namespace selfcal {

/// x W^T (+ bias, where the weights have one) of the linear layer `name`.
at::Tensor apply_linear(const kernels::Context& context, const at::Tensor& x,
                        const BlockWeights& weights, const std::string& name);

/// A tensor of the block; one that is not there is ExitCode::internal.
const at::Tensor& find_weight(const BlockWeights& weights, const std::string& name);

/// Takes a tensor out of the state, so that it can be freed as soon as it is used.
at::Tensor take(State& state, const std::string& name);

/// Declares an input that linear layers read; returns its index.
int declare_tap(BlockSpec& spec, const std::string& name, int64_t columns, int stage);
void declare_linear(BlockSpec& spec, Linear linear, bool bias);

/// Root-mean-square norm: x / rms(x) * (offset + weight).
struct RmsNorm {
  std::string name;
  int64_t width = 0;
  double epsilon = 0;
  double offset = 0;

  void declare(BlockSpec& spec) const { spec.parameters[name + ".weight"] = {width}; }
  at::Tensor apply(const kernels::Context& context, const at::Tensor& x,
                   const BlockWeights& weights) const;
};

/// Grouped-query attention with rotary positions (Ainslie et al., arXiv 2305.13245), between the
/// norm and the residual.
struct Attention {
  std::string name = "self_attn";
  std::string output = "o_proj";
  int64_t hidden = 0, heads = 0, key_value_heads = 0, head_dim = 0;
  double scale = 0;
  bool bias = false, output_bias = false;
  std::shared_ptr<const Rotary> rotary;

  /// Stage `first` holds q, k, v; stage `first` + 1 the output projection.
  void declare(BlockSpec& spec, int first, const std::string& input_tap,
               const std::string& output_tap) const;
  /// x: [n, hidden], n = sequences * tokens -> what the heads read, [n, heads * head_dim].
  at::Tensor mix(const kernels::Context& context, const at::Tensor& x, int64_t sequences,
                 const BlockWeights& weights) const;
  /// The same for one token a sequence, appended to the cache. x: [sequences, hidden].
  at::Tensor mix_step(const kernels::Context& context, const at::Tensor& x,
                      const at::Tensor& positions, KeyValueCache& cache,
                      const BlockWeights& weights) const;
  at::Tensor project(const kernels::Context& context, const at::Tensor& mixed,
                     const BlockWeights& weights) const {
    return apply_linear(context, mixed, weights, name + "." + output);
  }
};

/// down(silu(gate(x)) * up(x)).
struct GatedMlp {
  std::string name = "mlp";
  int64_t hidden = 0, width = 0;
  bool bias = false;

  /// Stage `first` holds gate and up; stage `first` + 1 down.
  void declare(BlockSpec& spec, int first, const std::string& input_tap,
               const std::string& output_tap) const;
  at::Tensor activate(const kernels::Context& context, const at::Tensor& x,
                      const BlockWeights& weights) const;
  at::Tensor project(const kernels::Context& context, const at::Tensor& activated,
                     const BlockWeights& weights) const {
    return apply_linear(context, activated, weights, name + ".down_proj");
  }
};

}  // namespace selfcal
