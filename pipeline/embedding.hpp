// The first block's inputs of known tokens, where no rank holds the whole table of words.
#pragma once
#include "comm/communicator.hpp"
#include "pipeline/leaves.hpp"
#include "pipeline/phase_timer.hpp"
#include "stages/model/model.hpp"

namespace selfcal {

/// The tokens of each leaf, as a view. tokens: [sequences, length] of the whole set.
std::vector<at::Tensor> rows_of(const at::Tensor& tokens, const std::vector<Leaf>& leaves);

inline constexpr int64_t words_at_once = int64_t{8} << 20;

/// Collective: the first rank reads the table, a run of rows of at most `at_once` bytes at a time
/// or a row, and each rank keeps those of the words in its own `tokens`, [rows, tokens] each. Their
/// hidden states in the device's memory, with the bits of Model::embed. Tokens that the model does
/// not know are ExitCode::data.
std::vector<at::Tensor> embed_together(const Communicator& ranks, const Model& model,
                                       PhaseTimer& timer, const std::vector<at::Tensor>& tokens,
                                       int64_t at_once = words_at_once);

}  // namespace selfcal
