#include "stages/generate/micro_batch.hpp"

#include <ATen/ATen.h>

#include <algorithm>

#include "base/error.hpp"
#include "stages/kernels/ops.hpp"

namespace selfcal {
namespace {

void check_text_settings(const CalibrationSettings& settings, const ModelShape& shape) {
  const auto at_least = [](const char* key, double value, double least) {
    if (!(value >= least))
      fail(ExitCode::config, "calibration.{} is {}, expected at least {}", key, value, least);
  };
  at_least("sequences", settings.sequences, 1);
  at_least("length", settings.length, 1);
  at_least("micro_batch", settings.micro_batch, 1);
  at_least("temperature.initial", settings.temperature_initial, 0);
  at_least("temperature.final", settings.temperature_final, 0);
  at_least("sampling.top_k", settings.top_k, 0);
  if (!(settings.top_p > 0 && settings.top_p <= 1))
    fail(ExitCode::config, "calibration.sampling.top_p is {}, expected above 0 and at most 1",
         settings.top_p);
  if (shape.maximum_length > 0 && settings.length > shape.maximum_length)
    fail(ExitCode::config, "calibration.length is {}, expected at most the model's {} positions",
         settings.length, shape.maximum_length);
}

}  // namespace

int64_t micro_batches(const CalibrationSettings& settings) {
  return (settings.sequences + settings.micro_batch - 1) / settings.micro_batch;
}

int64_t micro_batches_at_once(const CalibrationSettings& settings, const ModelShape& shape,
                              int64_t block_parameters) {
  const int64_t cache =
      2 * settings.micro_batch * settings.length * shape.key_value_heads * shape.head_dim;
  return std::max<int64_t>(1, std::min({kernels::few_rows / settings.micro_batch,
                                        block_parameters / cache, micro_batches(settings)}));
}

TextRules::TextRules(CalibrationSettings the_settings, const ModelShape& shape)
    : settings(std::move(the_settings)),
      special(special_tokens(shape)),
      sampling{settings.top_k, settings.top_p, {}} {
  check_text_settings(settings, shape);
  if (settings.end_of_text == EndOfText::ban) sampling.banned = special.end;
}

MicroBatchWriter::MicroBatchWriter(const TextRules& rules, int64_t index)
    : rules_(rules), index_(index) {
  const auto& settings = rules.settings;
  if (index < 0 || index >= micro_batches(settings))
    fail(ExitCode::internal, "micro-batch {} of {}", index, micro_batches(settings));
  const int64_t rows = settings.micro_batch, length = settings.length;
  tokens_ = at::empty({rows, length}, at::kInt);
  log_prob_ = at::empty({rows, length});
  temperature_ = at::empty({rows, length});
  for (int64_t row = 0; row < rows; ++row)
    rows_.emplace_back(settings, rules.special, index * rows + row,
                       SequenceMemory{tokens_.mutable_data_ptr<int32_t>() + row * length,
                                      log_prob_.mutable_data_ptr<float>() + row * length,
                                      temperature_.mutable_data_ptr<float>() + row * length});
}

int64_t MicroBatchWriter::written() const {
  int64_t sum = 0;
  for (const Sequence& row : rows_) sum += row.written();
  return sum;
}

StepInput MicroBatchWriter::input() const {
  const auto rows = static_cast<int64_t>(rows_.size());
  StepInput input{at::empty({rows}, at::kLong), at::empty({rows}, at::kLong)};
  for (size_t row = 0; row < rows_.size(); ++row) {
    input.tokens.mutable_data_ptr<int64_t>()[row] = rows_[row].last_token();
    // A complete row is computed on, at a place where it costs nothing.
    input.positions.mutable_data_ptr<int64_t>()[row] =
        rows_[row].complete() ? 0 : rows_[row].written() - 1;
  }
  return input;
}

void MicroBatchWriter::advance(const kernels::Context& context, const at::Tensor& logits) {
  std::vector<Draw> draws;
  for (size_t row = 0; row < rows_.size(); ++row) {
    if (rows_[row].complete()) continue;
    const Sequence::Next next = rows_[row].next();
    if (next.given)
      rows_[row].write_given(*next.given);
    else
      draws.push_back({static_cast<int64_t>(row), rows_[row].draw_id(), next.temperature});
  }
  const std::vector<Choice> choices = choose_tokens(context, logits, draws, rules_.sampling);
  for (size_t i = 0; i < draws.size(); ++i)
    rows_[static_cast<size_t>(draws[i].row)].write_drawn(choices[i].token, choices[i].log_prob,
                                                         draws[i].temperature);
}

MicroBatch MicroBatchWriter::finish() const {
  const auto& settings = rules_.settings;
  const int64_t kept =
      std::min(settings.micro_batch, settings.sequences - index_ * settings.micro_batch);
  return {index_, tokens_.narrow(0, 0, kept), log_prob_.narrow(0, 0, kept),
          temperature_.narrow(0, 0, kept)};
}

}  // namespace selfcal
