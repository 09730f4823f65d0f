// A family: how a model is put together from its config.json. One function a file, listed in
// families.cpp; docs/families.md tells how to add one.
#pragma once
#include <functional>

#include "stages/model/causal_model.hpp"

namespace selfcal {

struct Family {
  /// Builds the parts and may correct the shape, whose common keys have been read.
  ModelParts (*parts)(const ModelConfig& config, ModelShape& shape, kernels::Context context);
  bool ties_embeddings = false;  // where config.json does not say
};

/// By the name in config.json's `architectures`.
const std::map<std::string, Family>& families();

ModelParts llama_parts(const ModelConfig&, ModelShape&, kernels::Context);
ModelParts mistral_parts(const ModelConfig&, ModelShape&, kernels::Context);
ModelParts qwen2_parts(const ModelConfig&, ModelShape&, kernels::Context);
ModelParts qwen3_parts(const ModelConfig&, ModelShape&, kernels::Context);
ModelParts gemma_parts(const ModelConfig&, ModelShape&, kernels::Context);
ModelParts gemma2_parts(const ModelConfig&, ModelShape&, kernels::Context);
ModelParts gemma3_parts(const ModelConfig&, ModelShape&, kernels::Context);
ModelParts phi_parts(const ModelConfig&, ModelShape&, kernels::Context);
ModelParts opt_parts(const ModelConfig&, ModelShape&, kernels::Context);
ModelParts gpt_neox_parts(const ModelConfig&, ModelShape&, kernels::Context);

// What several families read alike.

/// An activation by the names that transformers has for it; others are ExitCode::data.
kernels::Activation read_activation(const ModelConfig& config, const std::string& key,
                                    const std::string& otherwise);

/// Heads of the config without rotation; scores scaled by 1 / sqrt(head_dim).
Attention read_attention(const ModelConfig& config, const ModelShape& shape);

/// An MLP without a gate: `up`, the activation, `down`, with `width` entries between them.
Mlp plain_mlp(const ModelShape& shape, const std::string& up, const std::string& down,
              kernels::Activation activation, int64_t width, bool bias);

/// One block, shared by all layers.
std::vector<std::shared_ptr<const Block>> alike_blocks(const ModelShape& shape,
                                                       kernels::Context context,
                                                       const BlockParts& parts);

/// The rotation of the first `portion` of each head; the model's length is cut to what it holds
/// for.
std::shared_ptr<const Rotary> make_rotary(RotaryAngles angles, ModelShape& shape);

/// `layer_types`, or else `slides(layer)`: for each layer whether its attention has a window.
std::vector<bool> read_sliding_layers(const ModelConfig& config, const ModelShape& shape,
                                      const std::function<bool(int64_t)>& slides);

/// The blocks of Llama's layout, by its names: norms of the root mean square before attention and a
/// gated MLP.
BlockParts llama_block(const ModelConfig& config, ModelShape& shape);

/// A model of Llama's layout whose layers are all alike.
ModelParts llama_layout(const ModelConfig& config, const ModelShape& shape,
                        kernels::Context context, const BlockParts& block);

/// The same with a block for layers that slide and one for those that do not.
ModelParts llama_layout(const ModelConfig& config, const ModelShape& shape,
                        kernels::Context context, const BlockParts& full, const BlockParts& sliding,
                        const std::vector<bool>& slides);

}  // namespace selfcal
