// Llama 1 to 3.3, SmolLM2 and all that took their layout (transformers: LlamaForCausalLM).
#include "stages/model/family.hpp"

namespace selfcal {

ModelParts llama_parts(const ModelConfig& config, ModelShape& shape, kernels::Context context) {
  BlockParts block = llama_block(config, shape);
  block.mlp.bias = config.flag("mlp_bias", false);
  return llama_layout(config, shape, context, block);
}

}  // namespace selfcal
