#include "stages/generate/generator.hpp"

#include <ATen/ATen.h>

#include "stages/generate/side_by_side.hpp"

namespace selfcal {
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
