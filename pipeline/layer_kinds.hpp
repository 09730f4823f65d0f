// Blocks of a model are alike in shape, not in what is done to them.
#pragma once
#include <cstddef>
#include <optional>
#include <vector>

#include "pipeline/config.hpp"
#include "pipeline/sizes.hpp"

namespace selfcal {

/// The settings of a block's linear layers, in the order of BlockSpec::linears; nothing where one
/// is skipped.
using BlockSettings = std::vector<std::optional<MethodSettings>>;

/// Blocks whose linear layers have the same settings are of one kind.
struct LayerKinds {
  std::vector<size_t> of_layer;
  std::vector<BlockSettings> settings;  // by kind
};

LayerKinds layer_kinds(const RunConfig& config, const ModelSizes& model);

}  // namespace selfcal
