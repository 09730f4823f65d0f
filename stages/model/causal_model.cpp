#include "stages/model/causal_model.hpp"

#include <ATen/ATen.h>

#include "base/error.hpp"

namespace selfcal {

CausalModel::CausalModel(ModelShape shape, std::shared_ptr<const Checkpoint> checkpoint,
                         kernels::Context context, ModelParts parts)
    : Model(std::move(shape), std::move(checkpoint), context), parts_(std::move(parts)) {}

const Block& CausalModel::block(int64_t layer) const {
  return *parts_.blocks.at(static_cast<size_t>(layer));
}

std::string CausalModel::block_prefix(int64_t layer) const {
  return fmt::format("{}{}.", parts_.block_prefix, layer);
}

OuterWeights CausalModel::read_outer() const {
  OuterWeights outer;
  outer[parts_.embedding] = read_weight(parts_.embedding, {shape_.vocabulary, shape_.hidden});
  const std::string norm = parts_.final_norm.name + ".weight";
  outer[norm] = read_weight(norm, {shape_.hidden});
  if (!shape_.tied_embeddings)
    outer[parts_.head] = read_weight(parts_.head, {shape_.vocabulary, shape_.hidden});
  return outer;
}

at::Tensor CausalModel::embed(const at::Tensor& tokens, const OuterWeights& outer) const {
  const at::Tensor ids = tokens.reshape({-1}).to(at::kLong);
  if (ids.numel() > 0) {
    const auto [smallest, largest] = at::aminmax(ids);
    if (smallest.item<int64_t>() < 0 || largest.item<int64_t>() >= shape_.vocabulary)
      fail(ExitCode::data, "token ids from {} to {}, expected 0 to {}", smallest.item<int64_t>(),
           largest.item<int64_t>(), shape_.vocabulary - 1);
  }
  std::vector<int64_t> sizes = tokens.sizes().vec();
  sizes.push_back(shape_.hidden);
  return find_weight(outer, parts_.embedding).index_select(0, ids).view(sizes);
}

at::Tensor CausalModel::logits(const at::Tensor& hidden, const OuterWeights& outer) const {
  const at::Tensor normed = parts_.final_norm.apply(context_, hidden.contiguous(), outer);
  const at::Tensor& head =
      find_weight(outer, shape_.tied_embeddings ? parts_.embedding : parts_.head);
  return kernels::linear(context_, normed, head, {}, at::kFloat);
}

}  // namespace selfcal
