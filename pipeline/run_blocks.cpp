#include "pipeline/run_blocks.hpp"

#include <ATen/ATen.h>

#include "storage/layer_file.hpp"

namespace selfcal {

BlockSource compressed_blocks(const Model& model, const JobDirectory& job) {
  return [&model, job](int64_t layer) {
    BlockWeights weights = model.read_block(layer);
    const auto dtype = model.shape().compute_dtype;
    LayerRecord record = read_layer(job.layer(layer));
    const size_t prefix = model.block_prefix(layer).size();
    for (auto& [name, linear] : record.linears)
      weights.at(name.substr(prefix)) = linear.weight.to(dtype);
    for (auto& [name, tensor] : record.changed) weights.at(name.substr(prefix)) = tensor.to(dtype);
    return weights;
  };
}

}  // namespace selfcal
