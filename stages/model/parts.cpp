#include "stages/model/parts.hpp"

#include <ATen/ATen.h>

#include "base/error.hpp"

namespace selfcal {
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

std::vector<std::string> Attention::inputs() const {
  return fused.empty() ? std::vector{query, key, value} : std::vector{fused};
}

void Attention::declare(BlockSpec& spec, int first, int input_tap,
                        const std::string& output_tap) const {
  const int64_t rows = heads * head_dim, shared_rows = key_value_heads * head_dim;
  if (fused.empty()) {
    declare_linear(spec, {query, rows, hidden, input_tap, first}, bias);
    declare_linear(spec, {key, shared_rows, hidden, input_tap, first}, bias);
    declare_linear(spec, {value, shared_rows, hidden, input_tap, first}, bias);
  } else {
    declare_linear(spec, {fused, rows + 2 * shared_rows, hidden, input_tap, first}, bias);
  }
  for (const auto& norm : {query_norm, key_norm})
    if (norm) norm->declare(spec.parameters);
  const int mixed = declare_tap(spec, output_tap, rows, first + 1);
  declare_linear(spec, {output, hidden, rows, mixed, first + 1}, output_bias);
}

Attention::Heads Attention::project(const kernels::Context& context, const at::Tensor& x,
                                    const at::Tensor& positions, int64_t length,
                                    const BlockWeights& weights) const {
  const int64_t n = x.size(0);
  const auto heads_of = [&](const std::string& linear, int64_t count) {
    return apply_linear(context, x, weights, linear).view({n, count, head_dim});
  };
  Heads result;
  if (fused.empty()) {
    result = {heads_of(query, heads), heads_of(key, key_value_heads),
              heads_of(value, key_value_heads)};
  } else {
    const at::Tensor all = heads_of(fused, 3 * heads).view({n, heads, 3, head_dim});
    const auto part = [&](int64_t index) { return all.select(2, index).contiguous(); };
    result = {part(0), part(1), part(2)};
  }
  if (query_norm) result.query = query_norm->apply(context, result.query, weights);
  if (key_norm) result.key = key_norm->apply(context, result.key, weights);
  if (rotary) {
    rotary->apply(context, result.query, positions, length);
    rotary->apply(context, result.key, positions, length);
  }
  return result;
}

at::Tensor Attention::mix(const kernels::Context& context, const at::Tensor& x, int64_t sequences,
                          const BlockWeights& weights) const {
  const int64_t n = x.size(0), tokens = n / std::max<int64_t>(1, sequences);
  const at::Tensor positions = at::arange(tokens, x.options().dtype(at::kLong)).repeat({sequences});
  const auto [q, k, v] = project(context, x, positions, tokens, weights);
  return kernels::causal_attention(context, q.view({sequences, tokens, heads, head_dim}),
                                   k.view({sequences, tokens, key_value_heads, head_dim}),
                                   v.view({sequences, tokens, key_value_heads, head_dim}), scale,
                                   limits)
      .view({n, heads * head_dim});
}

at::Tensor Attention::mix_step(const kernels::Context& context, const at::Tensor& x,
                               const at::Tensor& positions, KeyValueCache& cache,
                               const BlockWeights& weights) const {
  const auto [q, k, v] = project(context, x, positions, cache.keys.size(2), weights);
  kernels::append(context, cache.keys, positions, k);
  kernels::append(context, cache.values, positions, v);
  return kernels::decode_attention(context, q, positions, cache.keys, cache.values, scale, limits)
      .view({x.size(0), heads * head_dim});
}

std::vector<std::string> Mlp::inputs() const {
  return gate.empty() ? std::vector{up} : std::vector{gate, up};
}

void Mlp::declare(BlockSpec& spec, int first, int input_tap, const std::string& output_tap) const {
  for (const auto& linear : inputs())
    declare_linear(spec, {linear, width, hidden, input_tap, first}, bias);
  const int activated = declare_tap(spec, output_tap, width, first + 1);
  declare_linear(spec, {down, hidden, width, activated, first + 1}, bias);
}

at::Tensor Mlp::activate(const kernels::Context& context, const at::Tensor& x,
                         const BlockWeights& weights) const {
  if (gate.empty())
    return kernels::activate(context, activation, apply_linear(context, x, weights, up));
  const at::Tensor gates = apply_linear(context, x, weights, gate);
  return kernels::activate(context, activation, gates, apply_linear(context, x, weights, up));
}

bool Mlp::up_scales_through() const {
  return !gate.empty() || activation == kernels::Activation::relu;
}

}  // namespace selfcal
