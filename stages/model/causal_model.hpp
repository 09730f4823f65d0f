// What the families of decoder-only models share: tensors outside the blocks, embedding, head.
#pragma once
#include <vector>

#include "stages/model/decoder_block.hpp"
#include "stages/model/model.hpp"

namespace selfcal {

/// Embeddings of positions, added to those of tokens.
struct LearnedPositions {
  std::string name;
  int64_t count = 0;   // rows of the table
  int64_t offset = 0;  // row of position 0
};

/// A family's structure, put together from its config.
struct ModelParts {
  std::vector<std::shared_ptr<const Block>>
      blocks;  // one a layer; layers of one shape may share it
  std::string block_prefix = "model.layers.";

  std::string embedding = "model.embed_tokens";
  int64_t embedding_width = 0;  // 0: hidden
  double embedding_scale = 1;   // rounded to the compute dtype, as transformers does
  std::optional<LearnedPositions> positions;
  std::string project_in;  // linear layer from the embedding's width to hidden; empty: none

  std::optional<Norm> final_norm = Norm{"model.norm"};
  std::string project_out;
  std::string head = "lm_head";
  bool head_bias = false;
  double logit_soft_cap = 0;

  /// Endings of tensors that files of this family may hold and that nothing reads.
  std::vector<std::string> buffers = {".rotary_emb.inv_freq"};
};

class CausalModel : public Model {
 public:
  CausalModel(ModelShape shape, std::shared_ptr<const Checkpoint> checkpoint,
              kernels::Context context, ModelParts parts);

  const Block& block(int64_t layer) const override;
  std::string block_prefix(int64_t layer) const override;
  std::map<std::string, std::vector<int64_t>> outer_parameters(
      OuterParts parts = {}) const override;
  std::string word_table() const override { return parts_.embedding + ".weight"; }
  at::Tensor embed(const at::Tensor& tokens, const OuterWeights& outer,
                   const at::Tensor& positions = {}) const override;
  at::Tensor logits(const at::Tensor& hidden, const OuterWeights& outer) const override;

 private:
  bool is_buffer(const std::string& name) const;
  void check_tensors() const;
  at::Tensor position_embeddings(const at::Tensor& tokens, const OuterWeights& outer,
                                 const at::Tensor& positions) const;

  ModelParts parts_;
};

}  // namespace selfcal
