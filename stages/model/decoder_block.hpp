// The decoder block of all families: attention and an MLP, each added to the residual stream.
#pragma once
#include "stages/model/parts.hpp"

namespace selfcal {

enum class Arrangement {
  /// x += output_norm(attention(norm(x))); x += output_norm(mlp(norm(x))).
  serial,
  /// x = norm(x + attention(x)); x = norm(x + mlp(x)): OPT-350m.
  post_norm,
  /// x += attention(norm(x)) + mlp(norm(x)): GPT-NeoX; Phi, whose parts share one norm.
  parallel
};

struct BlockParts {
  Arrangement arrangement = Arrangement::serial;
  std::optional<Norm> attention_norm;
  Attention attention;
  std::optional<Norm> attention_output_norm;
  std::optional<Norm> mlp_norm;  // parallel without one: the MLP reads what attention reads
  Mlp mlp;
  std::optional<Norm> mlp_output_norm;
};

/// Stages: q k v; attention output; gate up; down. Between stages the state holds the residual,
/// "hidden" [sequences, tokens, hidden], and the taps that are still to be read.
class DecoderBlock : public Block {
 public:
  DecoderBlock(kernels::Context context, BlockParts parts);

  const BlockSpec& spec() const override { return spec_; }
  State begin(const at::Tensor& hidden, const BlockWeights& weights) const override;
  State advance(State state, int stage, const BlockWeights& weights) const override;
  at::Tensor finish(State state) const override;
  at::Tensor output_of(const std::string& module, const State& state,
                       const BlockWeights& weights) const override;
  at::Tensor step(const at::Tensor& hidden, const at::Tensor& positions, KeyValueCache& cache,
                  const BlockWeights& weights) const override;

 private:
  bool shares_input() const {
    return parts_.arrangement == Arrangement::parallel && !parts_.mlp_norm;
  }
  at::Tensor attention_input(const at::Tensor& hidden, const BlockWeights& weights) const;
  at::Tensor mlp_input(const at::Tensor& hidden, const BlockWeights& weights) const;
  /// The residual stream once the part that ends with the linear layer `last` has been added.
  at::Tensor add(const at::Tensor& hidden, const at::Tensor& input, const std::string& last,
                 const std::optional<Norm>& norm, const std::optional<Norm>& output_norm,
                 const BlockWeights& weights) const;
  at::Tensor add_attention(const at::Tensor& hidden, const at::Tensor& mixed,
                           const BlockWeights& weights) const;
  at::Tensor add_mlp(const at::Tensor& hidden, const at::Tensor& activated,
                     const BlockWeights& weights) const;

  kernels::Context context_;
  BlockParts parts_;
  BlockSpec spec_;
};

}  // namespace selfcal
