// Several micro-batches that share the steps of a decoder.
#pragma once
#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "stages/generate/micro_batch.hpp"

namespace selfcal {

/// Each micro-batch has rows of the step of its own. Rows that no micro-batch is left for go on as
/// they were, at a place where they cost nothing.
class SideBySide {
 public:
  /// `count`: micro-batches at most. `rules` is borrowed.
  SideBySide(const TextRules& rules, int64_t count);

  /// Begins micro-batches where there is room; returns how many.
  size_t begin(std::span<const int64_t> indices);
  /// int64 [count * micro_batch] each; valid until the next call.
  const StepInput& input();
  /// Writes a token of each; those that are complete leave. logits: float32
  /// [count * micro_batch, vocabulary].
  void advance(const kernels::Context& context, const at::Tensor& logits,
               const std::function<void(MicroBatch)>& on_finished);

  /// Tokens of those that are in work.
  int64_t written() const;
  bool empty() const;

 private:
  struct Place {
    int64_t first = 0;  // row
    std::unique_ptr<MicroBatchWriter> writer;
  };

  const TextRules& rules_;
  std::vector<Place> places_;
  StepInput input_;
};

}  // namespace selfcal
