#include "stages/generate/generator.hpp"

#include <ATen/ATen.h>

#include "base/error.hpp"
#include "stages/generate/sampler.hpp"
#include "stages/generate/sequence.hpp"

namespace selfcal {

int64_t micro_batches(const CalibrationSettings& settings) {
  return (settings.sequences + settings.micro_batch - 1) / settings.micro_batch;
}

namespace {

void check(const CalibrationSettings& settings, const ModelShape& shape) {
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

struct Generator::Implementation {
  Implementation(const Model& the_model, CalibrationSettings the_settings,
                 kernels::Context the_context)
      : model(the_model),
        settings(std::move(the_settings)),
        context(the_context),
        special(special_tokens(model.shape())),
        rule{settings.top_k, settings.top_p, {}} {
    check(settings, model.shape());
    if (settings.end_of_text == EndOfText::ban) rule.banned = special.end;
    outer = model.read_outer();
    for (int64_t layer = 0; layer < model.shape().layers; ++layer)
      blocks.push_back(model.read_block(layer));
  }

  /// Logits of the tokens that follow each row's last token, which enters the caches here.
  at::Tensor decode(const std::vector<Sequence>& rows) {
    auto tokens = at::empty({settings.micro_batch}, at::kLong), positions = at::empty_like(tokens);
    for (size_t row = 0; row < rows.size(); ++row) {
      tokens.mutable_data_ptr<int64_t>()[row] = rows[row].last_token();
      // A complete row is computed on, at a place where it costs nothing.
      positions.mutable_data_ptr<int64_t>()[row] =
          rows[row].complete() ? 0 : rows[row].written() - 1;
    }
    at::Tensor hidden = model.embed(tokens, outer, positions);
    for (size_t layer = 0; layer < blocks.size(); ++layer)
      hidden = model.block(static_cast<int64_t>(layer))
                   .step(hidden, positions, caches[layer], blocks[layer]);
    return model.logits(hidden, outer);
  }

  /// Writes the next token of each row that is not complete.
  void advance(std::vector<Sequence>& rows) {
    const at::Tensor logits = decode(rows);
    std::vector<Draw> draws;
    for (size_t row = 0; row < rows.size(); ++row) {
      if (rows[row].complete()) continue;
      const Sequence::Next next = rows[row].next();
      if (next.given) {
        rows[row].write_given(*next.given);
      } else {
        draws.push_back({static_cast<int64_t>(row), rows[row].draw_id(), next.temperature});
      }
    }
    const std::vector<Choice> choices = choose_tokens(context, logits, draws, rule);
    for (size_t i = 0; i < draws.size(); ++i)
      rows[draws[i].row].write_drawn(choices[i].token, choices[i].log_prob, draws[i].temperature);
  }

  const Model& model;
  const CalibrationSettings settings;
  const kernels::Context context;
  const SpecialTokens special;
  SamplingRule rule;
  OuterWeights outer;
  std::vector<BlockWeights> blocks;
  std::vector<KeyValueCache> caches;
};

Generator::Generator(const Model& model, CalibrationSettings settings, kernels::Context context)
    : implementation_(std::make_unique<Implementation>(model, std::move(settings), context)) {}

Generator::~Generator() = default;

MicroBatch Generator::sample(int64_t index, const std::function<void(int64_t, int64_t)>& on_token) {
  auto& self = *implementation_;
  const auto& settings = self.settings;
  if (index < 0 || index >= micro_batches(settings))
    fail(ExitCode::internal, "micro-batch {} of {}", index, micro_batches(settings));
  while (self.caches.size() < self.blocks.size())
    self.caches.push_back(self.model.make_cache(settings.micro_batch, settings.length));

  const int64_t rows = settings.micro_batch, length = settings.length;
  const auto tokens = at::empty({rows, length}, at::kInt);
  const auto log_prob = at::empty({rows, length}), temperature = at::empty({rows, length});
  std::vector<Sequence> sequences;
  for (int64_t row = 0; row < rows; ++row)
    sequences.emplace_back(settings, self.special, index * rows + row,
                           SequenceMemory{tokens.mutable_data_ptr<int32_t>() + row * length,
                                          log_prob.mutable_data_ptr<float>() + row * length,
                                          temperature.mutable_data_ptr<float>() + row * length});
  while (true) {
    int64_t written = 0;
    for (const Sequence& sequence : sequences) written += sequence.written();
    if (on_token) on_token(written, rows * length);
    if (written == rows * length) break;
    self.advance(sequences);
  }
  const int64_t kept = std::min(rows, settings.sequences - index * rows);
  return {index, tokens.narrow(0, 0, kept), log_prob.narrow(0, 0, kept),
          temperature.narrow(0, 0, kept)};
}

const BlockWeights& Generator::block_weights(int64_t layer) const {
  return implementation_->blocks.at(static_cast<size_t>(layer));
}

const OuterWeights& Generator::outer_weights() const { return implementation_->outer; }

}  // namespace selfcal
