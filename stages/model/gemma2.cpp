// Gemma 2 (transformers: Gemma2ForCausalLM): every other layer has a window, scores and logits are
// capped, each part stands between two norms.
#include "stages/model/gemma.hpp"

namespace selfcal {

ModelParts gemma2_parts(const ModelConfig& config, ModelShape& shape, kernels::Context context) {
  BlockParts full = gemma::block(config, shape, "hidden_activation");
  gemma::surround_with_norms(config, full);
  full.attention.limits.soft_cap = config.number("attn_logit_softcapping", 0);
  BlockParts sliding = full;
  sliding.attention.limits.window = config.integer("sliding_window", 4096);
  const auto slides =
      read_sliding_layers(config, shape, [](int64_t layer) { return layer % 2 == 0; });
  return gemma::finish(config, shape, llama_layout(config, shape, context, full, sliding, slides));
}

}  // namespace selfcal
