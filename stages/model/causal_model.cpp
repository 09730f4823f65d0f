#include "stages/model/causal_model.hpp"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>

#include "base/error.hpp"
#include "storage/dtype.hpp"

namespace selfcal {

CausalModel::CausalModel(ModelShape shape, std::shared_ptr<const Checkpoint> checkpoint,
                         kernels::Context context, ModelParts parts)
    : Model(std::move(shape), std::move(checkpoint), context), parts_(std::move(parts)) {
  if (parts_.embedding_width == 0) parts_.embedding_width = shape_.hidden;
  if (checkpoint_) check_tensors();
}

const Block& CausalModel::block(int64_t layer) const {
  return *parts_.blocks.at(static_cast<size_t>(layer));
}

std::string CausalModel::block_prefix(int64_t layer) const {
  return fmt::format("{}{}.", parts_.block_prefix, layer);
}

std::map<std::string, std::vector<int64_t>> CausalModel::outer_parameters(OuterParts parts) const {
  std::map<std::string, std::vector<int64_t>> all;
  const int64_t width = parts_.embedding_width;
  if (parts.words && (parts.embedding || (parts.head && shape_.tied_embeddings)))
    all[word_table()] = {shape_.vocabulary, width};
  if (parts.embedding) {
    if (parts_.positions)
      all[parts_.positions->name + ".weight"] = {parts_.positions->count, shape_.hidden};
    if (!parts_.project_in.empty()) all[parts_.project_in + ".weight"] = {shape_.hidden, width};
  }
  if (parts.head) {
    if (parts_.final_norm) parts_.final_norm->declare(all);
    if (!parts_.project_out.empty()) all[parts_.project_out + ".weight"] = {width, shape_.hidden};
    if (!shape_.tied_embeddings) all[parts_.head + ".weight"] = {shape_.vocabulary, width};
    if (parts_.head_bias) all[parts_.head + ".bias"] = {shape_.vocabulary};
  }
  return all;
}

bool CausalModel::is_buffer(const std::string& name) const {
  if (shape_.tied_embeddings && name == parts_.head + ".weight") return true;
  return std::ranges::any_of(parts_.buffers,
                             [&](const auto& ending) { return name.ends_with(ending); });
}

/// Every tensor that the architecture needs is there and fits; one that it has no place for would
/// be left out of the arithmetic. From headers only.
void CausalModel::check_tensors() const {
  auto expected = outer_parameters();
  for (int64_t layer = 0; layer < shape_.layers; ++layer)
    for (const auto& [name, shape] : block(layer).spec().parameters)
      expected[block_prefix(layer) + name] = shape;
  for (const auto& [name, shape] : expected) check_entry(name, shape);
  for (const auto& name : checkpoint_->names())
    if (!expected.contains(name) && !is_buffer(name))
      fail(ExitCode::data,
           "{}: tensor '{}' has no place in the architecture that config.json describes",
           checkpoint_->file_of(name).string(), printable(name));
}

at::Tensor CausalModel::position_embeddings(const at::Tensor& tokens, const OuterWeights& outer,
                                            const at::Tensor& positions) const {
  const auto& table = *parts_.positions;
  at::Tensor places = positions;
  if (!places.defined()) {
    if (tokens.dim() != 2) fail(ExitCode::internal, "embed: tokens of a step without positions");
    places = at::arange(tokens.size(1), at::kLong).repeat({tokens.size(0)});
  }
  check_range(places, table.count - table.offset, "positions");
  return find_weight(outer, table.name + ".weight")
      .index_select(0, (places + table.offset).to(device().memory));
}

at::Tensor CausalModel::embed(const at::Tensor& tokens, const OuterWeights& outer,
                              const at::Tensor& positions) const {
  const at::Tensor ids = tokens.reshape({-1}).to(at::kLong);
  const at::Tensor& words = find_weight(outer, word_table());
  check_range(ids, words.size(0), "token ids");
  at::Tensor hidden = words.index_select(0, ids.to(device().memory));
  if (parts_.embedding_scale != 1)
    hidden = hidden * at::scalar_tensor(parts_.embedding_scale, hidden.options());
  if (!parts_.project_in.empty()) hidden = apply_linear(context_, hidden, outer, parts_.project_in);
  if (parts_.positions)
    hidden = kernels::add(context_, hidden, position_embeddings(tokens, outer, positions));
  std::vector<int64_t> sizes = tokens.sizes().vec();
  sizes.push_back(shape_.hidden);
  return hidden.view(sizes);
}

at::Tensor CausalModel::logits(const at::Tensor& hidden, const OuterWeights& outer) const {
  at::Tensor last = hidden.contiguous();
  if (parts_.final_norm) last = parts_.final_norm->apply(context_, last, outer);
  if (!parts_.project_out.empty()) last = apply_linear(context_, last, outer, parts_.project_out);
  at::Tensor logits = kernels::linear(
      context_, last,
      find_weight(outer, shape_.tied_embeddings ? word_table() : parts_.head + ".weight"),
      parts_.head_bias ? find_weight(outer, parts_.head + ".bias") : at::Tensor(), at::kFloat);
  if (parts_.logit_soft_cap > 0) kernels::soft_cap(context_, logits, parts_.logit_soft_cap);
  return logits;
}

}  // namespace selfcal
