// The decoder block of Llama and its relatives: x += attention(norm(x)); x += mlp(norm(x)).
#pragma once
#include "stages/model/parts.hpp"

namespace selfcal {

/// Stages: q k v; o; gate up; down. Between stages the state holds the residual, "hidden"
/// [sequences, tokens, hidden], and the next stage's tap.
class PreNormBlock : public Block {
 public:
  PreNormBlock(kernels::Context context, RmsNorm attention_norm, Attention attention,
               RmsNorm mlp_norm, GatedMlp mlp);

  const BlockSpec& spec() const override { return spec_; }
  State begin(const at::Tensor& hidden, const BlockWeights& weights) const override;
  State advance(State state, int stage, const BlockWeights& weights) const override;
  at::Tensor finish(State state) const override;
  at::Tensor step(const at::Tensor& hidden, const at::Tensor& positions, KeyValueCache& cache,
                  const BlockWeights& weights) const override;

 private:
  /// The residual stream plus a part's output.
  at::Tensor residual(const at::Tensor& hidden, const at::Tensor& change) const;

  kernels::Context context_;
  RmsNorm attention_norm_, mlp_norm_;
  Attention attention_;
  GatedMlp mlp_;
  BlockSpec spec_;
};

}  // namespace selfcal
