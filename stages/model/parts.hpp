// The parts that decoder blocks are put together from. A part declares its tensors and linear
// layers, and computes with weights that it is given.
#pragma once
#include <memory>
#include <optional>

#include "stages/model/norm.hpp"
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

/// Grouped-query attention (Ainslie et al., arXiv 2305.13245), between the norm and the residual.
struct Attention {
  std::string module = "self_attn";
  std::string query = "self_attn.q_proj", key = "self_attn.k_proj", value = "self_attn.v_proj";
  std::string fused;  // where it is named, one layer in place of three: q, k, v of a head, then of
                      // the next head
  std::string output = "self_attn.o_proj";
  int64_t hidden = 0, heads = 0, key_value_heads = 0, head_dim = 0;
  double scale = 0;
  kernels::AttentionLimits limits;
  bool bias = false, output_bias = false;
  std::optional<Norm> query_norm, key_norm;  // of each head, before the rotation
  std::shared_ptr<const Rotary> rotary;      // null: no rotation

  /// The linear layers that read the block's input.
  std::vector<std::string> inputs() const;
  /// Stage `first` holds q, k, v; stage `first` + 1 the output projection.
  void declare(BlockSpec& spec, int first, int input_tap, const std::string& output_tap) const;
  /// x: [n, hidden], n = sequences * tokens -> what the heads read, [n, heads * head_dim].
  at::Tensor mix(const kernels::Context& context, const at::Tensor& x, int64_t sequences,
                 const BlockWeights& weights) const;
  /// The same for one token a sequence, appended to the cache. x: [sequences, hidden].
  at::Tensor mix_step(const kernels::Context& context, const at::Tensor& x,
                      const at::Tensor& positions, KeyValueCache& cache,
                      const BlockWeights& weights) const;

 private:
  struct Heads {
    at::Tensor query, key, value;  // [n, heads, head_dim]
  };
  /// Projected, normed and rotated; every position is below `length`.
  Heads project(const kernels::Context& context, const at::Tensor& x, const at::Tensor& positions,
                int64_t length, const BlockWeights& weights) const;
};

/// down(activation(gate(x)) * up(x)), or down(activation(up(x))) where no gate is named.
struct Mlp {
  std::string module = "mlp";
  std::string gate = "mlp.gate_proj", up = "mlp.up_proj", down = "mlp.down_proj";
  kernels::Activation activation = kernels::Activation::silu;
  int64_t hidden = 0, width = 0;
  bool bias = false;

  std::vector<std::string> inputs() const;
  /// Stage `first` holds gate and up; stage `first` + 1 down.
  void declare(BlockSpec& spec, int first, int input_tap, const std::string& output_tap) const;
  at::Tensor activate(const kernels::Context& context, const at::Tensor& x,
                      const BlockWeights& weights) const;
  /// Whether scaling what `up` gives scales what `down` reads, whatever the values.
  bool up_scales_through() const;
};

}  // namespace selfcal
