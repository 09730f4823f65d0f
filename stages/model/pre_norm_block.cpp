#include "stages/model/pre_norm_block.hpp"

#include <ATen/ATen.h>

#include "base/error.hpp"

namespace selfcal {
namespace {

constexpr const char* hidden_name = "hidden";
constexpr const char* attention_input = "attention_input";
constexpr const char* attention_output = "attention_output";
constexpr const char* mlp_input = "mlp_input";
constexpr const char* mlp_activation = "mlp_activation";

at::Tensor rows(const at::Tensor& hidden) { return hidden.reshape({-1, hidden.size(-1)}); }

/// Where scales may move (Lin et al., arXiv 2306.00978): norm -> q k v, v -> o if no head shares
/// it, norm -> gate up, up -> down.
std::vector<ScalePair> scale_pairs(const RmsNorm& attention_norm, const Attention& attention,
                                   const RmsNorm& mlp_norm, const GatedMlp& mlp) {
  const std::string a = attention.name + ".", m = mlp.name + ".", output = a + attention.output;
  std::vector<ScalePair> pairs = {{attention_norm.name,
                                   {a + "q_proj", a + "k_proj", a + "v_proj"},
                                   attention.name,
                                   attention_norm.offset}};
  if (attention.heads == attention.key_value_heads)
    pairs.push_back({a + "v_proj", {output}, output});
  pairs.push_back({mlp_norm.name, {m + "gate_proj", m + "up_proj"}, mlp.name, mlp_norm.offset});
  pairs.push_back({m + "up_proj", {m + "down_proj"}, m + "down_proj"});
  return pairs;
}

}  // namespace

PreNormBlock::PreNormBlock(kernels::Context context, RmsNorm attention_norm, Attention attention,
                           RmsNorm mlp_norm, GatedMlp mlp)
    : context_(context),
      attention_norm_(std::move(attention_norm)),
      mlp_norm_(std::move(mlp_norm)),
      attention_(std::move(attention)),
      mlp_(std::move(mlp)) {
  attention_norm_.declare(spec_);
  attention_.declare(spec_, 0, attention_input, attention_output);
  mlp_norm_.declare(spec_);
  mlp_.declare(spec_, 2, mlp_input, mlp_activation);
  spec_.scale_pairs = scale_pairs(attention_norm_, attention_, mlp_norm_, mlp_);
}

State PreNormBlock::begin(const at::Tensor& hidden, const BlockWeights& weights) const {
  const at::Tensor whole = hidden.contiguous();
  return {{hidden_name, whole},
          {attention_input, attention_norm_.apply(context_, rows(whole), weights)}};
}

State PreNormBlock::advance(State state, int stage, const BlockWeights& weights) const {
  at::Tensor hidden = take(state, hidden_name);
  switch (stage) {
    case 0: {
      const at::Tensor input = take(state, attention_input);
      return {{hidden_name, hidden},
              {attention_output, attention_.mix(context_, input, hidden.size(0), weights)}};
    }
    case 1: {
      hidden =
          residual(hidden, attention_.project(context_, take(state, attention_output), weights));
      return {{hidden_name, hidden}, {mlp_input, mlp_norm_.apply(context_, rows(hidden), weights)}};
    }
    case 2:
      return {{hidden_name, hidden},
              {mlp_activation, mlp_.activate(context_, take(state, mlp_input), weights)}};
    case 3:
      return {{hidden_name,
               residual(hidden, mlp_.project(context_, take(state, mlp_activation), weights))}};
    default:
      fail(ExitCode::internal, "stage {} of a block of {}", stage, spec_.stages);
  }
}

at::Tensor PreNormBlock::finish(State state) const { return take(state, hidden_name); }

at::Tensor PreNormBlock::step(const at::Tensor& hidden, const at::Tensor& positions,
                              KeyValueCache& cache, const BlockWeights& weights) const {
  const at::Tensor input = attention_norm_.apply(context_, hidden, weights);
  const at::Tensor mixed = attention_.mix_step(context_, input, positions, cache, weights);
  const at::Tensor middle = residual(hidden, attention_.project(context_, mixed, weights));
  const at::Tensor activated =
      mlp_.activate(context_, mlp_norm_.apply(context_, middle, weights), weights);
  return residual(middle, mlp_.project(context_, activated, weights));
}

at::Tensor PreNormBlock::residual(const at::Tensor& hidden, const at::Tensor& change) const {
  return kernels::add(context_, hidden, change.view(hidden.sizes()));
}

}  // namespace selfcal
