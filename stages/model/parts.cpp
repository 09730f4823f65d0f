#include "stages/model/parts.hpp"

#include <ATen/ATen.h>

#include <cstring>

#include "base/error.hpp"

namespace selfcal {
namespace {

/// Entry positions[s] of each sequence's cache becomes rows[s]. rows: [sequences, key_value_heads,
/// head_dim], contiguous like the cache.
void append(at::Tensor& cache, const at::Tensor& positions, const at::Tensor& rows) {
  const int64_t heads = cache.size(1), capacity = cache.size(2);
  const auto bytes = static_cast<size_t>(cache.size(3)) * cache.element_size();
  const auto* position = positions.const_data_ptr<int64_t>();
  const auto* from = static_cast<const char*>(rows.const_data_ptr());
  auto* to = static_cast<char*>(cache.mutable_data_ptr());
  for (int64_t s = 0; s < rows.size(0); ++s) {
    if (position[s] < 0 || position[s] >= capacity)
      fail(ExitCode::internal, "position {} in a cache of {}", position[s], capacity);
    for (int64_t head = s * heads; head < (s + 1) * heads; ++head)
      std::memcpy(to + (head * capacity + position[s]) * bytes, from + head * bytes, bytes);
  }
}

}  // namespace

const at::Tensor& find_weight(const BlockWeights& weights, const std::string& name) {
  const auto found = weights.find(name);
  if (found == weights.end())
    fail(ExitCode::internal, "no tensor '{}' among the block's weights", name);
  return found->second;
}

at::Tensor apply_linear(const kernels::Context& context, const at::Tensor& x,
                        const BlockWeights& weights, const std::string& name) {
  const auto bias = weights.find(name + ".bias");
  return kernels::linear(context, x, find_weight(weights, name + ".weight"),
                         bias == weights.end() ? at::Tensor() : bias->second);
}

at::Tensor take(State& state, const std::string& name) {
  auto node = state.extract(name);
  if (node.empty()) fail(ExitCode::internal, "no tensor '{}' in the block's state", name);
  return std::move(node.mapped());
}

int declare_tap(BlockSpec& spec, const std::string& name, int64_t columns, int stage) {
  spec.taps.push_back({name, columns, stage});
  return static_cast<int>(spec.taps.size()) - 1;
}

void declare_linear(BlockSpec& spec, Linear linear, bool bias) {
  spec.parameters[linear.name + ".weight"] = {linear.rows, linear.columns};
  if (bias) spec.parameters[linear.name + ".bias"] = {linear.rows};
  spec.stages = std::max(spec.stages, linear.stage + 1);
  spec.linears.push_back(std::move(linear));
}

at::Tensor RmsNorm::apply(const kernels::Context& context, const at::Tensor& x,
                          const BlockWeights& weights) const {
  return kernels::rms_norm(context, x, find_weight(weights, name + ".weight"), epsilon, offset);
}

void Attention::declare(BlockSpec& spec, int first, const std::string& input_tap,
                        const std::string& output_tap) const {
  const int input = declare_tap(spec, input_tap, hidden, first);
  declare_linear(spec, {name + ".q_proj", heads * head_dim, hidden, input, first}, bias);
  declare_linear(spec, {name + ".k_proj", key_value_heads * head_dim, hidden, input, first}, bias);
  declare_linear(spec, {name + ".v_proj", key_value_heads * head_dim, hidden, input, first}, bias);
  const int mixed = declare_tap(spec, output_tap, heads * head_dim, first + 1);
  declare_linear(spec, {name + "." + output, hidden, heads * head_dim, mixed, first + 1},
                 output_bias);
}

at::Tensor Attention::mix(const kernels::Context& context, const at::Tensor& x, int64_t sequences,
                          const BlockWeights& weights) const {
  const int64_t n = x.size(0), tokens = n / std::max<int64_t>(1, sequences);
  at::Tensor q = apply_linear(context, x, weights, name + ".q_proj").view({n, heads, head_dim});
  at::Tensor k =
      apply_linear(context, x, weights, name + ".k_proj").view({n, key_value_heads, head_dim});
  const at::Tensor v = apply_linear(context, x, weights, name + ".v_proj");
  const at::Tensor positions = at::arange(tokens, at::kLong).repeat({sequences});
  rotary->apply(context, q, positions, tokens);
  rotary->apply(context, k, positions, tokens);
  return kernels::causal_attention(context, q.view({sequences, tokens, heads, head_dim}),
                                   k.view({sequences, tokens, key_value_heads, head_dim}),
                                   v.view({sequences, tokens, key_value_heads, head_dim}), scale)
      .view({n, heads * head_dim});
}

at::Tensor Attention::mix_step(const kernels::Context& context, const at::Tensor& x,
                               const at::Tensor& positions, KeyValueCache& cache,
                               const BlockWeights& weights) const {
  const int64_t sequences = x.size(0);
  at::Tensor q =
      apply_linear(context, x, weights, name + ".q_proj").view({sequences, heads, head_dim});
  at::Tensor k = apply_linear(context, x, weights, name + ".k_proj")
                     .view({sequences, key_value_heads, head_dim});
  const at::Tensor v = apply_linear(context, x, weights, name + ".v_proj")
                           .view({sequences, key_value_heads, head_dim});
  rotary->apply(context, q, positions, cache.keys.size(2));
  rotary->apply(context, k, positions, cache.keys.size(2));
  append(cache.keys, positions, k);
  append(cache.values, positions, v);
  return kernels::decode_attention(context, q, positions, cache.keys, cache.values, scale)
      .view({sequences, heads * head_dim});
}

void GatedMlp::declare(BlockSpec& spec, int first, const std::string& input_tap,
                       const std::string& output_tap) const {
  const int input = declare_tap(spec, input_tap, hidden, first);
  declare_linear(spec, {name + ".gate_proj", width, hidden, input, first}, bias);
  declare_linear(spec, {name + ".up_proj", width, hidden, input, first}, bias);
  const int activated = declare_tap(spec, output_tap, width, first + 1);
  declare_linear(spec, {name + ".down_proj", hidden, width, activated, first + 1}, bias);
}

at::Tensor GatedMlp::activate(const kernels::Context& context, const at::Tensor& x,
                              const BlockWeights& weights) const {
  const at::Tensor gate = apply_linear(context, x, weights, name + ".gate_proj");
  return kernels::silu_multiply(context, gate,
                                apply_linear(context, x, weights, name + ".up_proj"));
}

}  // namespace selfcal
