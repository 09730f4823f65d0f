// A model of the demo's size on a machine of known rates.
#pragma once
#include <fmt/format.h>

#include "pipeline/run_plan.hpp"

namespace selfcal {

inline ModelSizes demo_model() {
  ModelSizes model;
  model.shape.architecture = "LlamaForCausalLM";
  model.shape.layers = 30;
  model.shape.hidden = 576;
  model.shape.vocabulary = 49152;
  model.shape.key_value_heads = 3;
  model.shape.head_dim = 64;
  model.shape.compute_dtype = at::kBFloat16;
  model.block.stages = 4;
  model.block.taps = {{"attention_input", 576, 0},
                      {"attention_output", 576, 1},
                      {"mlp_input", 576, 2},
                      {"mlp_activation", 1536, 3}};
  model.block.linears = {{"q_proj", 576, 576, 0, 0},     {"k_proj", 192, 576, 0, 0},
                         {"v_proj", 192, 576, 0, 0},     {"o_proj", 576, 576, 1, 1},
                         {"gate_proj", 1536, 576, 2, 2}, {"up_proj", 1536, 576, 2, 2},
                         {"down_proj", 576, 1536, 3, 3}};
  for (const auto& linear : model.block.linears)
    model.block_parameters += linear.rows * linear.columns;
  model.block_parameters += 2 * 576;
  model.outer_parameters = 49152 * 576 + 576;
  for (int layer = 0; layer < 30; ++layer)
    for (const auto& linear : model.block.linears)
      model.linears.push_back(
          {fmt::format("model.layers.{}.{}", layer, linear.name), linear.rows, linear.columns});
  return model;
}

inline Machine machine(int cores, int ranks) {
  Machine result;
  result.cores = cores;
  result.ranks = ranks;
  result.memory = uint64_t{16} << 30;
  result.rates = {2, 120e9, 12e9, {50e9, 0, 30e9, 20e9}, {}};
  return result;
}

inline RunConfig demo_config(const std::vector<std::string>& settings = {}) {
  return parse_config(
      "model: {path: models/demo}\noutput: runs/demo\ncalibration: {sequences: 16, length: 512, "
      "micro_batch: 4}\n"
      "layout: {mode: split}\nmethod: {group_size: 64}\n",
      "run.yaml", settings);
}

inline Plan plan_of(int ranks, const std::vector<std::string>& settings = {}) {
  return make_plan(demo_config(settings), demo_model(), ranks, machine(2, ranks));
}

inline double seconds_of(const Plan& plan, Phase phase) {
  return plan.seconds[static_cast<size_t>(phase)];
}

}  // namespace selfcal
