// What a plan needs to know of a model, all from its headers.
#pragma once
#include <vector>

#include "pipeline/config.hpp"
#include "stages/model/model.hpp"

namespace selfcal {

struct ModelSizes {
  ModelShape shape;
  BlockSpec block;                   // of layer 0; the others are taken to be like it
  int64_t block_parameters = 0;      // entries of all tensors of a block
  int64_t outer_parameters = 0;      // embeddings, final norm, head
  int64_t embedding_parameters = 0;  // of these what tokens enter by,
  int64_t head_parameters = 0;       // and what logits are found with
  std::vector<NamedLinear> linears;  // of all blocks

  /// Bytes of a weight or an activation.
  double element_bytes() const { return shape.compute_dtype == at::kFloat ? 4.0 : 2.0; }
  /// Entries of the head.
  double head_weights() const { return static_cast<double>(shape.vocabulary * shape.hidden); }
  /// Entries of a block's linear layers.
  double linear_weights() const;
};

/// All linear layers of the model's blocks, in order.
std::vector<NamedLinear> all_linears(const Model& model);

ModelSizes sizes_of(const Model& model);

/// First layers of the runs that a generator of `depth` ranks cuts a model into; the last entry is
/// the number of layers.
std::vector<int64_t> decode_runs(const ModelSizes& model, int depth);

}  // namespace selfcal
