#include "stages/generate/side_by_side.hpp"

#include <ATen/ATen.h>

#include <algorithm>

namespace selfcal {

SideBySide::SideBySide(const TextRules& rules, int64_t count)
    : rules_(rules), places_(static_cast<size_t>(count)) {
  const int64_t rows = rules.settings.micro_batch;
  for (size_t i = 0; i < places_.size(); ++i) places_[i].first = static_cast<int64_t>(i) * rows;
  input_ = {at::zeros({count * rows}, at::kLong), at::zeros({count * rows}, at::kLong)};
}

size_t SideBySide::begin(std::span<const int64_t> indices) {
  size_t begun = 0;
  for (auto& place : places_)
    if (!place.writer && begun < indices.size())
      place.writer = std::make_unique<MicroBatchWriter>(rules_, indices[begun++]);
  return begun;
}

const StepInput& SideBySide::input() {
  const int64_t rows = rules_.settings.micro_batch;
  for (const auto& [first, writer] : places_) {
    if (!writer) continue;
    const StepInput mine = writer->input();
    input_.tokens.narrow(0, first, rows).copy_(mine.tokens);
    input_.positions.narrow(0, first, rows).copy_(mine.positions);
  }
  return input_;
}

void SideBySide::advance(const kernels::Context& context, const at::Tensor& logits,
                         const std::function<void(MicroBatch)>& on_finished) {
  const int64_t rows = rules_.settings.micro_batch;
  for (auto& [first, writer] : places_) {
    if (!writer) continue;
    writer->advance(context, logits.narrow(0, first, rows));
    if (!writer->complete()) continue;
    on_finished(writer->finish());
    writer.reset();
    input_.positions.narrow(0, first, rows).zero_();
  }
}

int64_t SideBySide::written() const {
  int64_t tokens = 0;
  for (const auto& place : places_) tokens += place.writer ? place.writer->written() : 0;
  return tokens;
}

bool SideBySide::empty() const {
  return std::ranges::all_of(places_, [](const Place& place) { return !place.writer; });
}

}  // namespace selfcal
