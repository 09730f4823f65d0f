#include "pipeline/run_blocks.hpp"

#include "storage/layer_file.hpp"

namespace selfcal {

BlockSource compressed_blocks(const Model& model, JobDirectory job) {
  return [&model, job](int64_t layer) {
    BlockWeights weights = model.read_block(layer);
    LayerRecord record = read_layer(job.layer(layer));
    const size_t prefix = model.block_prefix(layer).size();
    for (auto& [name, linear] : record.linears) weights.at(name.substr(prefix)) = linear.weight;
    for (auto& [name, tensor] : record.changed) weights.at(name.substr(prefix)) = tensor;
    return weights;
  };
}

}  // namespace selfcal
