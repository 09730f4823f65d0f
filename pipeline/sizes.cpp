#include "pipeline/sizes.hpp"

#include <c10/util/accumulate.h>

#include "pipeline/layout.hpp"

namespace selfcal {

double ModelSizes::linear_weights() const {
  double sum = 0;
  for (const auto& linear : block.linears) sum += static_cast<double>(linear.rows * linear.columns);
  return sum;
}

std::vector<NamedLinear> all_linears(const Model& model) {
  std::vector<NamedLinear> linears;
  for (int64_t layer = 0; layer < model.shape().layers; ++layer)
    for (const auto& linear : model.block(layer).spec().linears)
      linears.push_back({model.block_prefix(layer) + linear.name, linear.rows, linear.columns});
  return linears;
}

ModelSizes sizes_of(const Model& model) {
  ModelSizes sizes;
  sizes.shape = model.shape();
  sizes.block = model.block(0).spec();
  sizes.linears = all_linears(model);
  for (const auto& [name, shape] : sizes.block.parameters)
    sizes.block_parameters += c10::multiply_integers(shape);
  const auto outer = [&](OuterParts parts) {
    int64_t entries = 0;
    for (const auto& [name, shape] : model.outer_parameters(parts))
      entries += c10::multiply_integers(shape);
    return entries;
  };
  sizes.outer_parameters = outer({});
  sizes.embedding_parameters = outer({.head = false});
  sizes.head_parameters = outer({.embedding = false});
  return sizes;
}

std::vector<int64_t> decode_runs(const ModelSizes& model, int depth) {
  // A step reads a layer's weights, and the last rank the head's too.
  std::vector<double> costs(static_cast<size_t>(model.shape.layers),
                            static_cast<double>(model.block_parameters));
  costs.back() += model.head_weights();
  return cut_by_cost(costs, depth);
}

}  // namespace selfcal
