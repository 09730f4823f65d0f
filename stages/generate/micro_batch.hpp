// A micro-batch of self-calibration sequences while it is written, apart from who computes its
// logits.
#pragma once
#include <algorithm>

#include "stages/generate/sampler.hpp"
#include "stages/generate/sequence.hpp"

namespace selfcal {

/// Rows [index * micro_batch, ...) of the set. Surplus rows of a short last batch are sampled and
/// dropped.
struct MicroBatch {
  int64_t index = 0;
  at::Tensor tokens;       // int32 [rows, length]
  at::Tensor log_prob;     // float32 [rows, length]
  at::Tensor temperature;  // float32 [rows, length]
};

/// Number of micro-batches of a set.
int64_t micro_batches(const CalibrationSettings& settings);

/// How many of them one copy of the model samples in one step, which reads the weights once for all
/// their rows: no more than the kernels of few rows take, while their caches are smaller than the
/// weights; at least 1. `block_parameters`: of one block.
int64_t micro_batches_at_once(const CalibrationSettings& settings, const ModelShape& shape,
                              int64_t block_parameters);

/// How many of `batches` share a step where up to `at_once` may, and `depth` steps are in flight:
/// no more than leave each of those some.
inline int64_t batches_of_step(int64_t batches, int64_t at_once, int64_t depth) {
  return std::clamp<int64_t>((batches + depth - 1) / depth, 1, at_once);
}

/// What text may be written, and how.
struct TextRules {
  /// Settings out of range for the model are ExitCode::config.
  TextRules(CalibrationSettings settings, const ModelShape& shape);

  CalibrationSettings settings;
  SpecialTokens special;
  SamplingRule sampling;
};

/// What one decoding step of a micro-batch reads: int64 [micro_batch] each.
struct StepInput {
  at::Tensor tokens;
  at::Tensor positions;
};

/// Its text depends on its index and the rules only. Every row begins with the start token; given
/// tokens have log-probability and temperature 0. Rows that never reach the full length under
/// `redraw`, and logits that are not finite, are ExitCode::data.
class MicroBatchWriter {
 public:
  /// `rules` outlives the writer.
  MicroBatchWriter(const TextRules& rules, int64_t index);

  int64_t index() const { return index_; }
  /// Tokens so far, of all rows. A redrawn row counts from its start again.
  int64_t written() const;
  /// Tokens of all rows at the end.
  int64_t capacity() const { return tokens_.numel(); }
  bool complete() const { return written() == capacity(); }

  /// Each row's last token, which the step enters into the cache at its position.
  StepInput input() const;
  /// Writes the next token of each row that is not complete, from float32 logits [micro_batch,
  /// vocabulary] (overwritten).
  void advance(const kernels::Context& context, const at::Tensor& logits);
  /// Without the surplus rows.
  MicroBatch finish() const;

 private:
  const TextRules& rules_;
  int64_t index_;
  at::Tensor tokens_, log_prob_, temperature_;
  std::vector<Sequence> rows_;
};

}  // namespace selfcal
