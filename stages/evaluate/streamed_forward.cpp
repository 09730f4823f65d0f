#include "stages/evaluate/streamed_forward.hpp"

#include <ATen/ATen.h>

#include <algorithm>

#include "base/error.hpp"

namespace selfcal {

BlockSource dense_blocks(const Model& model) {
  return [&model](int64_t layer) { return model.read_block(layer); };
}

std::vector<at::Tensor> cut_rows(const at::Tensor& tokens) {
  return tokens.split(leaf_rows(tokens.size(1)));
}

std::vector<at::Tensor> streamed_forward(const Model& model, const std::vector<at::Tensor>& tokens,
                                         const OuterWeights& outer, const BlockSource& blocks,
                                         const std::function<void(int64_t, int64_t)>& on_block) {
  std::vector<at::Tensor> hidden;
  for (const at::Tensor& leaf : tokens) {
    if (leaf.size(1) > model.shape().maximum_length)
      fail(ExitCode::data, "rows of {} tokens, but the model reads at most {}", leaf.size(1),
           model.shape().maximum_length);
    hidden.push_back(model.embed(leaf, outer));
  }
  const int64_t layers = model.shape().layers;
  for (int64_t layer = 0; layer < layers; ++layer) {
    const BlockWeights weights = place(blocks(layer), model.device());
    for (at::Tensor& leaf : hidden) leaf = forward(model.block(layer), leaf, weights);
    if (on_block) on_block(layer + 1, layers);
  }
  return hidden;
}

void for_logits(const Model& model, const at::Tensor& hidden, const OuterWeights& outer,
                const std::function<void(const at::Tensor&, int64_t)>& use) {
  int64_t first = 0;
  for (const at::Tensor& rows : hidden.reshape({-1, hidden.size(-1)}).split(tokens_of_logits)) {
    use(model.logits(rows, outer), first);
    first += rows.size(0);
  }
}

}  // namespace selfcal
