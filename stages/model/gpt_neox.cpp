// GPT-NeoX 20B and Pythia (transformers: GPTNeoXForCausalLM): q, k and v in one layer, attention
// and a plain MLP side by side, each behind a norm of its own, or one after the other.
#include "stages/model/family.hpp"

namespace selfcal {

ModelParts gpt_neox_parts(const ModelConfig& config, ModelShape& shape, kernels::Context context) {
  const double epsilon = config.number("layer_norm_eps", 1e-5);
  BlockParts block;
  block.arrangement =
      config.flag("use_parallel_residual", true) ? Arrangement::parallel : Arrangement::serial;
  block.attention_norm = layer_norm("input_layernorm", shape.hidden, epsilon);
  Attention& attention = block.attention = read_attention(config, shape);
  attention.module = "attention";
  attention.fused = "attention.query_key_value";
  attention.output = "attention.dense";
  attention.bias = attention.output_bias = config.flag("attention_bias", true);

  // The rotation has keys of its own: rotary_pct and rotary_emb_base.
  double portion = config.number("rotary_pct", 0.25);
  const auto parameters = config.object("rope_parameters");
  if (parameters) portion = parameters->number("partial_rotary_factor", portion);
  const auto rotated = static_cast<int64_t>(static_cast<double>(shape.head_dim) * portion);
  attention.rotary =
      make_rotary(rotary_angles(config, parameters ? parameters : config.object("rope_scaling"),
                                rotated, config.number("rotary_emb_base", 10000)),
                  shape);

  block.mlp_norm = layer_norm("post_attention_layernorm", shape.hidden, epsilon);
  block.mlp = plain_mlp(shape, "mlp.dense_h_to_4h", "mlp.dense_4h_to_h",
                        read_activation(config, "hidden_act", "gelu"),
                        config.integer("intermediate_size"), true);

  ModelParts parts;
  parts.block_prefix = "gpt_neox.layers.";
  parts.blocks = alike_blocks(shape, context, block);
  parts.embedding = "gpt_neox.embed_in";
  parts.final_norm = layer_norm("gpt_neox.final_layer_norm", shape.hidden, epsilon);
  parts.head = "embed_out";
  parts.buffers.insert(parts.buffers.end(), {".attention.bias", ".attention.masked_bias"});
  return parts;
}

}  // namespace selfcal
