// Phi-1, Phi-1.5 and Phi-2 (transformers: PhiForCausalLM): attention and a plain MLP side by side
// behind one norm, biases everywhere, also in the head, part of each head rotated.
#include "stages/model/family.hpp"

namespace selfcal {
namespace {

double read_portion(const ModelConfig& config) {
  const double otherwise = config.number("partial_rotary_factor", 0.5);
  const auto parameters = config.object("rope_parameters");
  return parameters ? parameters->number("partial_rotary_factor", otherwise) : otherwise;
}

}  // namespace

ModelParts phi_parts(const ModelConfig& config, ModelShape& shape, kernels::Context context) {
  const double epsilon = config.number("layer_norm_eps", 1e-5);
  BlockParts block;
  block.arrangement = Arrangement::parallel;
  block.attention_norm = layer_norm("input_layernorm", shape.hidden, epsilon);

  Attention& attention = block.attention = read_attention(config, shape);
  attention.output = "self_attn.dense";
  attention.bias = attention.output_bias = true;
  if (config.flag("qk_layernorm", false)) {
    attention.query_norm = layer_norm("self_attn.q_layernorm", shape.head_dim, epsilon);
    attention.key_norm = layer_norm("self_attn.k_layernorm", shape.head_dim, epsilon);
  }
  const auto rotated =
      static_cast<int64_t>(static_cast<double>(shape.head_dim) * read_portion(config));
  attention.rotary = make_rotary(rotary_angles(config, rotated), shape);

  block.mlp =
      plain_mlp(shape, "mlp.fc1", "mlp.fc2", read_activation(config, "hidden_act", "gelu_new"),
                config.integer("intermediate_size", 4 * shape.hidden), true);

  ModelParts parts;
  parts.blocks = alike_blocks(shape, context, block);
  parts.final_norm = layer_norm("model.final_layernorm", shape.hidden, epsilon);
  parts.head_bias = true;
  return parts;
}

}  // namespace selfcal
