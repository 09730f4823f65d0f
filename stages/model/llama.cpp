// Llama 1 to 3.2, SmolLM2, and Mistral as far as its window reaches (transformers:
// LlamaForCausalLM, MistralForCausalLM).
#include <cmath>

#include "base/error.hpp"
#include "stages/model/causal_model.hpp"
#include "stages/model/pre_norm_block.hpp"

namespace selfcal {

ModelParts llama_parts(const ModelConfig& config, ModelShape& shape, kernels::Context context) {
  const std::string activation = config.text("hidden_act", "silu");
  if (activation != "silu")
    fail(ExitCode::data, "{}: hidden_act: '{}', expected 'silu'", config.where(), activation);
  const double epsilon = config.number("rms_norm_eps", 1e-6);

  Attention attention;
  attention.hidden = shape.hidden;
  attention.heads = config.integer("num_attention_heads");
  attention.key_value_heads = shape.key_value_heads;
  attention.head_dim = shape.head_dim;
  attention.scale = 1 / std::sqrt(static_cast<double>(shape.head_dim));
  attention.bias = attention.output_bias = config.flag("attention_bias", false);
  attention.rotary = std::make_shared<Rotary>(inverse_frequencies(config, shape.head_dim));

  GatedMlp mlp;
  mlp.hidden = shape.hidden;
  mlp.width = config.integer("intermediate_size");
  mlp.bias = config.flag("mlp_bias", false);

  // Within a sliding window, attention is plain causal attention.
  shape.maximum_length =
      std::min(shape.maximum_length, config.integer("sliding_window", shape.maximum_length));

  ModelParts parts;
  parts.final_norm = {"model.norm", shape.hidden, epsilon};
  const auto block = std::make_shared<PreNormBlock>(
      context, RmsNorm{"input_layernorm", shape.hidden, epsilon}, attention,
      RmsNorm{"post_attention_layernorm", shape.hidden, epsilon}, mlp);
  parts.blocks.assign(static_cast<size_t>(shape.layers), block);
  return parts;
}

}  // namespace selfcal
