#include "stages/generate/generator.hpp"

#include <ATen/ATen.h>

namespace selfcal {

Generator::Generator(const Model& model, CalibrationSettings settings, kernels::Context context)
    : rules_(std::move(settings), model.shape()),
      context_(context),
      decoder_(model, rules_.settings, {0, model.shape().layers}) {}

MicroBatch Generator::sample(int64_t index, const std::function<void(int64_t, int64_t)>& on_token) {
  MicroBatchWriter batch(rules_, index);
  while (true) {
    if (on_token) on_token(batch.written(), batch.capacity());
    if (batch.complete()) return batch.finish();
    const StepInput input = batch.input();
    batch.advance(context_, decoder_.logits(decoder_.step(decoder_.embed(input), input.positions)));
  }
}

}  // namespace selfcal
