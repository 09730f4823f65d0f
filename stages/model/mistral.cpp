// Mistral 7B v0.1 to v0.3 (transformers: MistralForCausalLM): Llama with a window in every layer.
#include "stages/model/family.hpp"

namespace selfcal {

ModelParts mistral_parts(const ModelConfig& config, ModelShape& shape, kernels::Context context) {
  BlockParts block = llama_block(config, shape);
  block.attention.bias = block.attention.output_bias = false;
  block.attention.limits.window = config.integer("sliding_window", 0);
  return llama_layout(config, shape, context, block);
}

}  // namespace selfcal
