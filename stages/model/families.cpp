#include <cmath>

#include "base/error.hpp"
#include "base/names.hpp"
#include "stages/model/family.hpp"
#include "storage/dtype.hpp"

namespace selfcal {

const std::map<std::string, Family>& families() {
  static const std::map<std::string, Family> all = {
      {"GPTNeoXForCausalLM", {gpt_neox_parts}},    {"Gemma2ForCausalLM", {gemma2_parts, true}},
      {"Gemma3ForCausalLM", {gemma3_parts, true}}, {"GemmaForCausalLM", {gemma_parts, true}},
      {"LlamaForCausalLM", {llama_parts}},         {"MistralForCausalLM", {mistral_parts}},
      {"OPTForCausalLM", {opt_parts, true}},       {"PhiForCausalLM", {phi_parts}},
      {"Qwen2ForCausalLM", {qwen2_parts}},         {"Qwen3ForCausalLM", {qwen3_parts}},
  };
  return all;
}

kernels::Activation read_activation(const ModelConfig& config, const std::string& key,
                                    const std::string& otherwise) {
  using kernels::Activation;
  static const std::map<std::string, Activation> names = {
      {"silu", Activation::silu},
      {"swish", Activation::silu},
      {"gelu", Activation::gelu},
      {"gelu_new", Activation::gelu_tanh},
      {"gelu_fast", Activation::gelu_tanh},
      {"gelu_pytorch_tanh", Activation::gelu_tanh},
      {"relu", Activation::relu}};
  const std::string name = config.text(key, otherwise);
  const auto found = names.find(name);
  if (found != names.end()) return found->second;
  fail(ExitCode::data, "{}: {}: '{}' is not supported ({} are)", config.where(), key,
       printable(name), names_of(names));
}

Attention read_attention(const ModelConfig& config, const ModelShape& shape) {
  Attention attention;
  attention.hidden = shape.hidden;
  attention.heads = config.integer("num_attention_heads");
  attention.key_value_heads = shape.key_value_heads;
  attention.head_dim = shape.head_dim;
  attention.scale = 1 / std::sqrt(static_cast<double>(shape.head_dim));
  return attention;
}

Mlp plain_mlp(const ModelShape& shape, const std::string& up, const std::string& down,
              kernels::Activation activation, int64_t width, bool bias) {
  return {"mlp", "", up, down, activation, shape.hidden, width, bias};
}

std::vector<std::shared_ptr<const Block>> alike_blocks(const ModelShape& shape,
                                                       kernels::Context context,
                                                       const BlockParts& parts) {
  return {static_cast<size_t>(shape.layers), std::make_shared<DecoderBlock>(context, parts)};
}

std::shared_ptr<const Rotary> make_rotary(RotaryAngles angles, ModelShape& shape) {
  if (angles.longest > 0) shape.maximum_length = std::min(shape.maximum_length, angles.longest);
  return std::make_shared<Rotary>(std::move(angles));
}

std::vector<bool> read_sliding_layers(const ModelConfig& config, const ModelShape& shape,
                                      const std::function<bool(int64_t)>& slides) {
  std::vector<bool> all;
  const auto types = config.texts("layer_types");
  if (!types.empty() && static_cast<int64_t>(types.size()) != shape.layers)
    fail(ExitCode::data, "{}: layer_types: {} entries, expected {}", config.where(), types.size(),
         shape.layers);
  for (const auto& type : types) {
    if (type != "sliding_attention" && type != "full_attention")
      fail(ExitCode::data,
           "{}: layer_types: '{}', expected 'sliding_attention' or 'full_attention'",
           config.where(), printable(type));
    all.push_back(type == "sliding_attention");
  }
  for (int64_t layer = 0; types.empty() && layer < shape.layers; ++layer)
    all.push_back(slides(layer));
  return all;
}

BlockParts llama_block(const ModelConfig& config, ModelShape& shape) {
  const double epsilon = config.number("rms_norm_eps", 1e-6);
  BlockParts block;
  block.attention_norm = {"input_layernorm", shape.hidden, epsilon};
  block.attention = read_attention(config, shape);
  block.attention.bias = block.attention.output_bias = config.flag("attention_bias", false);
  block.attention.rotary = make_rotary(rotary_angles(config, shape.head_dim), shape);
  block.mlp_norm = {"post_attention_layernorm", shape.hidden, epsilon};
  block.mlp.hidden = shape.hidden;
  block.mlp.width = config.integer("intermediate_size");
  block.mlp.activation = read_activation(config, "hidden_act", "silu");
  return block;
}

ModelParts llama_layout(const ModelConfig& config, const ModelShape& shape,
                        kernels::Context context, const BlockParts& block) {
  return llama_layout(config, shape, context, block, block,
                      std::vector<bool>(static_cast<size_t>(shape.layers)));
}

ModelParts llama_layout(const ModelConfig& config, const ModelShape& shape,
                        kernels::Context context, const BlockParts& full, const BlockParts& sliding,
                        const std::vector<bool>& slides) {
  ModelParts parts;
  parts.final_norm = {"model.norm", shape.hidden, config.number("rms_norm_eps", 1e-6)};
  const auto whole = std::make_shared<DecoderBlock>(context, full),
             windowed = std::make_shared<DecoderBlock>(context, sliding);
  for (const bool slide : slides) parts.blocks.push_back(slide ? windowed : whole);
  return parts;
}

}  // namespace selfcal
