#include "stages/model/decoder_block.hpp"

#include <ATen/ATen.h>

#include "base/error.hpp"

namespace selfcal {
namespace {

constexpr const char* hidden_name = "hidden";
constexpr const char* attention_input_name = "attention_input";
constexpr const char* attention_output_name = "attention_output";
constexpr const char* mlp_input_name = "mlp_input";
constexpr const char* mlp_activation_name = "mlp_activation";
constexpr const char* whole_block = "block";  // as a scale pair's inspected module

at::Tensor rows(const at::Tensor& hidden) { return hidden.reshape({-1, hidden.size(-1)}); }

/// Where scales may move (Lin et al., arXiv 2306.00978): from a norm whose output nothing but
/// linear layers reads; from v to the output projection if no head shares it; from up to down if
/// the activation lets a factor through.
std::vector<ScalePair> scale_pairs(const BlockParts& parts, bool shares_input) {
  const Attention& attention = parts.attention;
  const Mlp& mlp = parts.mlp;
  const bool norms_first = parts.arrangement != Arrangement::post_norm;
  std::vector<ScalePair> pairs;
  const auto from_norm = [&](const Norm& norm, std::vector<std::string> consumers,
                             const std::string& module) {
    const std::string inspected = consumers.size() == 1 ? consumers.front() : module;
    pairs.push_back({norm.name, std::move(consumers), inspected, norm.offset});
  };
  if (norms_first && shares_input) {
    std::vector<std::string> consumers = attention.inputs();
    for (auto& linear : mlp.inputs()) consumers.push_back(std::move(linear));
    from_norm(*parts.attention_norm, std::move(consumers), whole_block);
  } else if (norms_first) {
    from_norm(*parts.attention_norm, attention.inputs(), attention.module);
  }
  if (attention.fused.empty() && attention.heads == attention.key_value_heads)
    pairs.push_back({attention.value, {attention.output}, attention.output});
  if (norms_first && !shares_input) from_norm(*parts.mlp_norm, mlp.inputs(), mlp.module);
  if (mlp.up_scales_through()) pairs.push_back({mlp.up, {mlp.down}, mlp.down});
  return pairs;
}

}  // namespace

DecoderBlock::DecoderBlock(kernels::Context context, BlockParts parts)
    : context_(context), parts_(std::move(parts)) {
  for (const auto& norm : {parts_.attention_norm, parts_.attention_output_norm, parts_.mlp_norm,
                           parts_.mlp_output_norm})
    if (norm) norm->declare(spec_.parameters);
  const int64_t hidden = parts_.attention.hidden;
  const int input = declare_tap(spec_, attention_input_name, hidden, 0);
  parts_.attention.declare(spec_, 0, input, attention_output_name);
  const int middle = shares_input() ? input : declare_tap(spec_, mlp_input_name, hidden, 2);
  parts_.mlp.declare(spec_, 2, middle, mlp_activation_name);
  spec_.scale_pairs = scale_pairs(parts_, shares_input());
}

State DecoderBlock::begin(const at::Tensor& hidden, const BlockWeights& weights) const {
  const at::Tensor whole = hidden.contiguous();
  return {{hidden_name, whole}, {attention_input_name, attention_input(rows(whole), weights)}};
}

State DecoderBlock::advance(State state, int stage, const BlockWeights& weights) const {
  at::Tensor& hidden = state.at(hidden_name);
  switch (stage) {
    case 0: {
      const at::Tensor input =
          shares_input() ? state.at(attention_input_name) : take(state, attention_input_name);
      state[attention_output_name] = parts_.attention.mix(context_, input, hidden.size(0), weights);
      return state;
    }
    case 1: {
      const at::Tensor mixed = take(state, attention_output_name);
      if (parts_.arrangement == Arrangement::parallel && !shares_input())
        state[mlp_input_name] = mlp_input(rows(hidden), weights);
      hidden = add_attention(hidden, mixed, weights);
      if (parts_.arrangement != Arrangement::parallel)
        state[mlp_input_name] = mlp_input(rows(hidden), weights);
      return state;
    }
    case 2:
      state[mlp_activation_name] = parts_.mlp.activate(
          context_, take(state, shares_input() ? attention_input_name : mlp_input_name), weights);
      return state;
    case 3:
      hidden = add_mlp(hidden, take(state, mlp_activation_name), weights);
      return state;
    default:
      fail(ExitCode::internal, "stage {} of a block of {}", stage, spec_.stages);
  }
}

at::Tensor DecoderBlock::finish(State state) const { return take(state, hidden_name); }

at::Tensor DecoderBlock::output_of(const std::string& module, const State& state,
                                   const BlockWeights& weights) const {
  const auto attention = [&] {
    const at::Tensor mixed = parts_.attention.mix(context_, state.at(attention_input_name),
                                                  state.at(hidden_name).size(0), weights);
    return apply_linear(context_, mixed, weights, parts_.attention.output);
  };
  const auto mlp = [&] {
    const char* input = shares_input() ? attention_input_name : mlp_input_name;
    return apply_linear(context_, parts_.mlp.activate(context_, state.at(input), weights), weights,
                        parts_.mlp.down);
  };
  if (module == parts_.attention.module) return attention();
  if (module == parts_.mlp.module) return mlp();
  if (module == whole_block && shares_input()) return kernels::add(context_, attention(), mlp());
  fail(ExitCode::internal, "{}: not a module of the block", module);
}

at::Tensor DecoderBlock::step(const at::Tensor& hidden, const at::Tensor& positions,
                              KeyValueCache& cache, const BlockWeights& weights) const {
  const at::Tensor input = attention_input(hidden, weights);
  const at::Tensor mixed = parts_.attention.mix_step(context_, input, positions, cache, weights);
  const at::Tensor middle = add_attention(hidden, mixed, weights);
  const bool parallel = parts_.arrangement == Arrangement::parallel;
  const at::Tensor reads = shares_input() ? input : mlp_input(parallel ? hidden : middle, weights);
  return add_mlp(middle, parts_.mlp.activate(context_, reads, weights), weights);
}

at::Tensor DecoderBlock::attention_input(const at::Tensor& hidden,
                                         const BlockWeights& weights) const {
  return parts_.arrangement == Arrangement::post_norm
             ? hidden
             : parts_.attention_norm->apply(context_, hidden, weights);
}

at::Tensor DecoderBlock::mlp_input(const at::Tensor& hidden, const BlockWeights& weights) const {
  return parts_.arrangement == Arrangement::post_norm
             ? hidden
             : parts_.mlp_norm->apply(context_, hidden, weights);
}

at::Tensor DecoderBlock::add(const at::Tensor& hidden, const at::Tensor& input,
                             const std::string& last, const std::optional<Norm>& norm,
                             const std::optional<Norm>& output_norm,
                             const BlockWeights& weights) const {
  at::Tensor change = apply_linear(context_, input, weights, last);
  if (output_norm) change = output_norm->apply(context_, change, weights);
  const at::Tensor sum = kernels::add(context_, hidden, change.view(hidden.sizes()));
  return parts_.arrangement == Arrangement::post_norm ? norm->apply(context_, sum, weights) : sum;
}

at::Tensor DecoderBlock::add_attention(const at::Tensor& hidden, const at::Tensor& mixed,
                                       const BlockWeights& weights) const {
  return add(hidden, mixed, parts_.attention.output, parts_.attention_norm,
             parts_.attention_output_norm, weights);
}

at::Tensor DecoderBlock::add_mlp(const at::Tensor& hidden, const at::Tensor& activated,
                                 const BlockWeights& weights) const {
  return add(hidden, activated, parts_.mlp.down, parts_.mlp_norm, parts_.mlp_output_norm, weights);
}

}  // namespace selfcal
