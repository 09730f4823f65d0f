#include "pipeline/layer_kinds.hpp"

#include <algorithm>

namespace selfcal {

LayerKinds layer_kinds(const RunConfig& config, const ModelSizes& model) {
  const auto layers = static_cast<size_t>(model.shape.layers), a_block = model.block.linears.size();
  LayerKinds kinds;
  for (size_t layer = 0; layer < layers; ++layer) {
    BlockSettings settings;
    for (size_t i = 0; i < a_block; ++i)
      settings.push_back(settings_for(config, model.linears.at(layer * a_block + i).name));
    const auto known = std::ranges::find(kinds.settings, settings);
    kinds.of_layer.push_back(static_cast<size_t>(known - kinds.settings.begin()));
    if (known == kinds.settings.end()) kinds.settings.push_back(std::move(settings));
  }
  return kinds;
}

}  // namespace selfcal
