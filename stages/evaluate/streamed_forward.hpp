// The forward pass of many rows through a model that is never in memory whole.
#pragma once
#include <functional>
#include <vector>

#include "stages/evaluate/leaf_rows.hpp"
#include "stages/model/model.hpp"

namespace selfcal {

/// Where a block's weights come from: the model's directory, or the committed layers of a run.
using BlockSource = std::function<BlockWeights(int64_t layer)>;

/// The dense weights of the model's directory.
BlockSource dense_blocks(const Model& model);

/// tokens [rows, length], cut into leaves of leaf_rows(length).
std::vector<at::Tensor> cut_rows(const at::Tensor& tokens);

/// For each leaf of tokens [rows, length] the hidden states after the last block, [rows, length,
/// hidden]. A block is asked for once, used for all leaves, and dropped. `on_block(done, all)` is
/// called after each. Independent.
std::vector<at::Tensor> streamed_forward(
    const Model& model, const std::vector<at::Tensor>& tokens, const OuterWeights& outer,
    const BlockSource& blocks, const std::function<void(int64_t, int64_t)>& on_block = {});

/// Tokens whose logits are found together.
inline constexpr int64_t tokens_of_logits = 256;

/// Calls use(logits float32 [n, vocabulary], first token) for runs of tokens of hidden [..,
/// hidden], in order: logits of a large vocabulary are never in memory for all tokens.
void for_logits(const Model& model, const at::Tensor& hidden, const OuterWeights& outer,
                const std::function<void(const at::Tensor&, int64_t)>& use);

}  // namespace selfcal
