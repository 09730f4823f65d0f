// What the three generations of Gemma share.
#pragma once
#include "stages/model/family.hpp"

namespace selfcal::gemma {

/// Llama's block with norms that multiply by (1 + weight). `activation`: the key that names it.
BlockParts block(const ModelConfig& config, ModelShape& shape, const std::string& activation);
/// Norms before and after both parts, and the scale of queries: Gemma 2 and 3.
void surround_with_norms(const ModelConfig& config, BlockParts& block);
/// Embeddings times sqrt(hidden), the final norm with (1 + weight), the soft cap of the logits.
ModelParts finish(const ModelConfig& config, const ModelShape& shape, ModelParts parts);

}  // namespace selfcal::gemma
