// Gemma 2B and 7B (transformers: GemmaForCausalLM). The activation is the one that `hidden_act`
// names, as in transformers.
#include "stages/model/gemma.hpp"

#include <cmath>

#include "base/error.hpp"

namespace selfcal {

BlockParts gemma::block(const ModelConfig& config, ModelShape& shape,
                        const std::string& activation) {
  if (config.flag("use_bidirectional_attention", false))
    fail(ExitCode::data, "{}: use_bidirectional_attention: true, expected a causal model",
         config.where());
  BlockParts block = llama_block(config, shape);
  block.attention_norm->offset = block.mlp_norm->offset = 1;
  block.mlp.activation = read_activation(config, activation, "gelu_pytorch_tanh");
  return block;
}

void gemma::surround_with_norms(const ModelConfig& config, BlockParts& block) {
  const auto norm_called = [&](const char* name) {
    Norm norm = *block.attention_norm;
    norm.name = name;
    return norm;
  };
  block.attention_output_norm = norm_called("post_attention_layernorm");
  block.mlp_norm = norm_called("pre_feedforward_layernorm");
  block.mlp_output_norm = norm_called("post_feedforward_layernorm");
  block.attention.scale = 1 / std::sqrt(config.number("query_pre_attn_scalar", 256));
}

ModelParts gemma::finish(const ModelConfig& config, const ModelShape& shape, ModelParts parts) {
  parts.embedding_scale = std::sqrt(static_cast<double>(shape.hidden));
  parts.final_norm->offset = 1;
  parts.logit_soft_cap = config.number("final_logit_softcapping", 0);
  return parts;
}

ModelParts gemma_parts(const ModelConfig& config, ModelShape& shape, kernels::Context context) {
  const BlockParts block = gemma::block(config, shape, "hidden_act");
  ModelParts parts = gemma::finish(config, shape, llama_layout(config, shape, context, block));
  parts.logit_soft_cap = 0;
  return parts;
}

}  // namespace selfcal
