// OPT (transformers: OPTForCausalLM): learned positions, biases, a plain MLP. OPT-350m has its
// norms behind the residual sums and embeddings that are narrower than the blocks.
#include "base/error.hpp"
#include "stages/model/family.hpp"

namespace selfcal {

ModelParts opt_parts(const ModelConfig& config, ModelShape& shape, kernels::Context context) {
  if (!config.flag("layer_norm_elementwise_affine", true))
    fail(ExitCode::data, "{}: layer_norm_elementwise_affine: false, expected norms with weights",
         config.where());
  constexpr double epsilon = 1e-5;
  const bool norms_first = config.flag("do_layer_norm_before", true);
  const bool bias = config.flag("enable_bias", true);

  BlockParts block;
  block.arrangement = norms_first ? Arrangement::serial : Arrangement::post_norm;
  block.attention_norm = layer_norm("self_attn_layer_norm", shape.hidden, epsilon);
  block.attention = read_attention(config, shape);
  block.attention.output = "self_attn.out_proj";
  block.attention.bias = block.attention.output_bias = bias;
  block.mlp_norm = layer_norm("final_layer_norm", shape.hidden, epsilon);
  block.mlp = plain_mlp(shape, "fc1", "fc2", read_activation(config, "activation_function", "relu"),
                        config.integer("ffn_dim"), bias);

  const std::string decoder = "model.decoder.";
  ModelParts parts;
  parts.block_prefix = decoder + "layers.";
  parts.blocks = alike_blocks(shape, context, block);
  parts.embedding = decoder + "embed_tokens";
  parts.embedding_width = config.integer("word_embed_proj_dim", shape.hidden);
  constexpr int64_t offset = 2;  // rows that padding once needed
  parts.positions = {decoder + "embed_positions", shape.maximum_length + offset, offset};
  if (parts.embedding_width != shape.hidden) {
    parts.project_in = decoder + "project_in";
    parts.project_out = decoder + "project_out";
  }
  parts.final_norm.reset();
  if (norms_first && !config.flag("_remove_final_layer_norm", false))
    parts.final_norm = layer_norm(decoder + "final_layer_norm", shape.hidden, epsilon);
  return parts;
}

}  // namespace selfcal
