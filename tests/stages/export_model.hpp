// A Llama directory of random weights and a job that compressed it, small enough for a test.
#pragma once
#include <ATen/ATen.h>
#include <fmt/format.h>

#include <functional>
#include <string>

#include "../storage/example_layer.hpp"
#include "storage/run_directory.hpp"
#include "storage/tensor_file.hpp"

namespace selfcal::export_example {

inline constexpr int64_t layers = 3, hidden = 64, inner = 176, vocabulary = 96;
inline const std::string job_id = "export-example";

/// Compresses linear layer `name` ("mlp.up_proj") of a block; undefined codes and mask: left as it
/// is.
using Compress = std::function<CompressedLinear(int64_t layer, const std::string& name,
                                                int64_t rows, int64_t columns)>;

inline std::string config_text(at::ScalarType dtype, bool tied) {
  return fmt::format(
      R"({{"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": {}, "intermediate_size": {},
 "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "num_hidden_layers": {}, "vocab_size": {},
 "max_position_embeddings": 128, "rms_norm_eps": 1e-05, "tie_word_embeddings": {}, "bos_token_id": 1,
 "eos_token_id": 2, "hidden_act": "silu", "torch_dtype": "{}"}})",
      hidden, inner, layers, vocabulary, tied,
      dtype == at::kFloat  ? "float32"
      : dtype == at::kHalf ? "float16"
                           : "bfloat16");
}

inline const std::vector<std::tuple<const char*, int64_t, int64_t>> linears{
    {"self_attn.q_proj", 64, hidden}, {"self_attn.k_proj", 32, hidden},
    {"self_attn.v_proj", 32, hidden}, {"self_attn.o_proj", hidden, 64},
    {"mlp.gate_proj", inner, hidden}, {"mlp.up_proj", inner, hidden},
    {"mlp.down_proj", hidden, inner}};

/// The dense model in `model`, committed layers in `job`.
inline void write(const fs::path& model, const JobDirectory& job, at::ScalarType dtype, bool tied,
                  const Compress& compress) {
  make_folder(model);
  make_folder(job.layers());
  write_text_atomically(model / "config.json", config_text(dtype, tied));
  write_text_atomically(model / "generation_config.json", "{\"bos_token_id\": 1}\n");
  write_text_atomically(model / "tokenizer.json", "{}\n");
  NamedTensors tensors;
  tensors["model.embed_tokens.weight"] = example_matrix(vocabulary, hidden, 1).to(dtype);
  tensors["model.norm.weight"] = at::ones({hidden}, dtype);
  if (!tied) tensors["lm_head.weight"] = example_matrix(vocabulary, hidden, 2).to(dtype);
  for (int64_t layer = 0; layer < layers; ++layer) {
    LayerRecord record;
    record.layer = layer;
    record.job_id = job_id;
    const std::string prefix = layer_prefix(layer);
    for (const char* norm : {"input_layernorm.weight", "post_attention_layernorm.weight"})
      tensors[prefix + norm] = at::ones({hidden}, dtype);
    record.changed[prefix + "input_layernorm.weight"] = at::full({hidden}, 1.5, dtype);
    for (const auto& [name, rows, columns] : linears) {
      tensors[prefix + name + ".weight"] = example_matrix(rows, columns, layer).to(dtype);
      const CompressedLinear linear = compress(layer, name, rows, columns);
      if (linear.codes.defined() || linear.mask.defined())
        record.linears[prefix + name + ".weight"] = linear;
    }
    write_layer(job.layer(layer), record, "");
  }
  write_tensor_file(model / "model.safetensors", tensors, {{"format", "pt"}});
}

}  // namespace selfcal::export_example
