// Gemma 3, text only (transformers: Gemma3ForCausalLM): Gemma 2 with norms of q and k in place of
// the cap of scores, and a rotation of their own for layers with a window.
#include "stages/model/gemma.hpp"

namespace selfcal {
namespace {

/// `rope_parameters` by kind of layer, or the keys that were before it.
std::shared_ptr<const Rotary> read_rotary(const ModelConfig& config, ModelShape& shape,
                                          bool sliding) {
  const double theta =
      sliding ? config.number("rope_local_base_freq", 10000) : config.number("rope_theta", 1000000);
  if (const auto parameters = config.object("rope_parameters"))
    return make_rotary(
        rotary_angles(config, parameters->object(sliding ? "sliding_attention" : "full_attention"),
                      shape.head_dim, theta),
        shape);
  const auto scaling = sliding ? std::nullopt : config.object("rope_scaling");
  return make_rotary(rotary_angles(config, scaling, shape.head_dim, theta), shape);
}

}  // namespace

ModelParts gemma3_parts(const ModelConfig& config, ModelShape& shape, kernels::Context context) {
  BlockParts full = gemma::block(config, shape, "hidden_activation");
  gemma::surround_with_norms(config, full);
  const double epsilon = full.attention_norm->epsilon;
  full.attention.query_norm = {"self_attn.q_norm", shape.head_dim, epsilon, 1};
  full.attention.key_norm = {"self_attn.k_norm", shape.head_dim, epsilon, 1};
  full.attention.rotary = read_rotary(config, shape, false);
  BlockParts sliding = full;
  sliding.attention.rotary = read_rotary(config, shape, true);
  sliding.attention.limits.window = config.integer("sliding_window", 4096);
  const int64_t pattern = config.integer("sliding_window_pattern", 6);
  const auto slides =
      read_sliding_layers(config, shape, [&](int64_t layer) { return (layer + 1) % pattern != 0; });
  return gemma::finish(config, shape, llama_layout(config, shape, context, full, sliding, slides));
}

}  // namespace selfcal
