// What the families of decoder-only models share: tensor names outside the blocks, embedding, head.
#pragma once
#include <vector>

#include "stages/model/config.hpp"
#include "stages/model/model.hpp"
#include "stages/model/parts.hpp"

namespace selfcal {

/// A family's structure, put together from its config.
struct ModelParts {
  std::vector<std::shared_ptr<const Block>>
      blocks;  // one a layer; layers of one shape may share it
  std::string block_prefix = "model.layers.";
  std::string embedding = "model.embed_tokens.weight";
  RmsNorm final_norm;  // "model.norm"
  std::string head = "lm_head.weight";
};

class CausalModel : public Model {
 public:
  CausalModel(ModelShape shape, std::shared_ptr<const Checkpoint> checkpoint,
              kernels::Context context, ModelParts parts);

  const Block& block(int64_t layer) const override;
  std::string block_prefix(int64_t layer) const override;
  OuterWeights read_outer() const override;
  at::Tensor embed(const at::Tensor& tokens, const OuterWeights& outer) const override;
  at::Tensor logits(const at::Tensor& hidden, const OuterWeights& outer) const override;

 private:
  ModelParts parts_;
};

/// A family builds its parts and may correct the shape. One function a file: llama.cpp ...
ModelParts llama_parts(const ModelConfig& config, ModelShape& shape, kernels::Context context);

}  // namespace selfcal
