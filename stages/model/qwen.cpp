// Qwen2 and Qwen2.5 (transformers: Qwen2ForCausalLM): Llama with biases on q, k and v. Qwen3
// (Qwen3ForCausalLM): norms of q and k instead. Both may have a window from some layer on.
#include <algorithm>

#include "base/error.hpp"
#include "stages/model/family.hpp"

namespace selfcal {
namespace {

ModelParts with_window(const ModelConfig& config, const ModelShape& shape, kernels::Context context,
                       const BlockParts& block) {
  const bool has_window = config.flag("use_sliding_window", false);
  const auto slides = read_sliding_layers(config, shape, [&](int64_t layer) {
    return has_window && layer >= config.whole_number("max_window_layers", 28);
  });
  BlockParts sliding = block;
  if (has_window) {
    sliding.attention.limits.window = config.integer("sliding_window", 4096);
  } else if (std::ranges::find(slides, true) != slides.end()) {
    fail(ExitCode::data, "{}: layer_types has sliding layers, but use_sliding_window is false",
         config.where());
  }
  return llama_layout(config, shape, context, block, sliding, slides);
}

}  // namespace

ModelParts qwen2_parts(const ModelConfig& config, ModelShape& shape, kernels::Context context) {
  BlockParts block = llama_block(config, shape);
  block.attention.bias = true;
  block.attention.output_bias = false;
  return with_window(config, shape, context, block);
}

ModelParts qwen3_parts(const ModelConfig& config, ModelShape& shape, kernels::Context context) {
  BlockParts block = llama_block(config, shape);
  const double epsilon = block.attention_norm->epsilon;
  block.attention.query_norm = {"self_attn.q_norm", shape.head_dim, epsilon};
  block.attention.key_norm = {"self_attn.k_norm", shape.head_dim, epsilon};
  return with_window(config, shape, context, block);
}

}  // namespace selfcal
