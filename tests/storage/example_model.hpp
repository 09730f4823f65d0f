// A dense model directory and a finished job of it, made of example layers.
#pragma once
#include <map>
#include <string>

#include "example_layer.hpp"
#include "storage/run_directory.hpp"
#include "storage/tensor_file.hpp"

namespace selfcal {

inline constexpr int64_t example_layers = 5;

inline void write_example_run(const fs::path& model, const JobDirectory& job) {
  make_folder(model);
  make_folder(job.layers());
  write_text_atomically(model / "config.json", R"({"model_type": "example"})");
  NamedTensors tensors;
  tensors["model.embed_tokens.weight"] = example_matrix(101, 32, 99).to(at::kBFloat16);
  tensors["model.norm.weight"] = at::ones({32}, at::kBFloat16);
  tensors["lm_head.scale"] = at::scalar_tensor(0.5, at::kFloat);
  std::string chain;
  for (int64_t layer = 0; layer < example_layers; ++layer) {
    const LayerRecord record = example_layer(layer);
    tensors[quantised_name(layer)] = example_matrix(48, 32, layer).to(at::kBFloat16);
    tensors[pruned_name(layer)] = example_matrix(32, 48, layer).to(at::kBFloat16);
    tensors[layer_prefix(layer) + "input_layernorm.weight"] = at::ones({32}, at::kBFloat16);
    tensors[layer_prefix(layer) + "post_attention_layernorm.weight"] =
        at::full({32}, layer, at::kBFloat16);
    chain = chain_hash(record.job_id, chain, record.content_hash());
    write_layer(job.layer(layer), record, chain);
  }
  write_tensor_file(model / "model.safetensors", tensors);
}

}  // namespace selfcal
