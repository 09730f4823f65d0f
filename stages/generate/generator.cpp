#include "stages/generate/generator.hpp"

#include <ATen/ATen.h>

#include <memory>

namespace selfcal {
namespace {

/// Micro-batches side by side: each has rows of the step of its own. Rows that no micro-batch is
/// left for go on as they were, at a place where they cost nothing.
class SideBySide {
 public:
  SideBySide(const TextRules& rules, int64_t count)
      : rows_(rules.settings.micro_batch),
        rules_(rules),
        writers_(static_cast<size_t>(count)),
        input_{at::zeros({count * rows_}, at::kLong), at::zeros({count * rows_}, at::kLong)} {}

  /// Begins micro-batches where there is room; returns how many.
  size_t begin(std::span<const int64_t> indices) {
    size_t begun = 0;
    for (auto& writer : writers_)
      if (!writer && begun < indices.size())
        writer = std::make_unique<MicroBatchWriter>(rules_, indices[begun++]);
    return begun;
  }

  const StepInput& input() {
    for_each([&](int64_t first, std::unique_ptr<MicroBatchWriter>& writer) {
      const StepInput mine = writer->input();
      input_.tokens.narrow(0, first, rows_).copy_(mine.tokens);
      input_.positions.narrow(0, first, rows_).copy_(mine.positions);
    });
    return input_;
  }

  void advance(const kernels::Context& context, const at::Tensor& logits,
               const std::function<void(MicroBatch)>& on_finished) {
    for_each([&](int64_t first, std::unique_ptr<MicroBatchWriter>& writer) {
      writer->advance(context, logits.narrow(0, first, rows_));
      if (!writer->complete()) return;
      on_finished(writer->finish());
      writer.reset();
      input_.positions.narrow(0, first, rows_).zero_();
    });
  }

  int64_t written() {
    int64_t tokens = 0;
    for_each([&](int64_t, auto& writer) { tokens += writer->written(); });
    return tokens;
  }
  bool empty() const {
    return std::ranges::all_of(writers_, [](const auto& writer) { return !writer; });
  }

 private:
  template <class Body>
  void for_each(const Body& body) {
    for (size_t i = 0; i < writers_.size(); ++i)
      if (writers_[i]) body(static_cast<int64_t>(i) * rows_, writers_[i]);
  }

  const int64_t rows_;
  const TextRules& rules_;
  std::vector<std::unique_ptr<MicroBatchWriter>> writers_;
  StepInput input_;
};

}  // namespace

Generator::Generator(const Model& model, CalibrationSettings settings, kernels::Context context,
                     int64_t at_once)
    : rules_(std::move(settings), model.shape()),
      context_(context),
      at_once_(at_once),
      decoder_(model, at_once * rules_.settings.micro_batch, rules_.settings.length,
               {0, model.shape().layers}) {}

void Generator::sample(const std::vector<int64_t>& indices,
                       const std::function<void(MicroBatch)>& on_finished,
                       const std::function<void(int64_t)>& on_step) {
  std::span<const int64_t> waiting = indices;
  SideBySide batches(rules_, at_once_);
  while (true) {
    waiting = waiting.subspan(batches.begin(waiting));
    if (batches.empty()) return;
    if (on_step) on_step(batches.written());
    const StepInput& input = batches.input();
    batches.advance(context_,
                    decoder_.logits(decoder_.step(decoder_.embed(input), input.positions)),
                    on_finished);
  }
}

}  // namespace selfcal
