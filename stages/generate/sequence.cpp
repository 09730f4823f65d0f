#include "stages/generate/sequence.hpp"

#include <algorithm>

#include "base/error.hpp"
#include "base/log.hpp"

namespace selfcal {

/// Restarts of one row under `redraw`, after which a text without an end is taken to be out of
/// reach.
static constexpr int64_t most_attempts = 100;

bool SpecialTokens::ends(int64_t token) const {
  return std::binary_search(end.begin(), end.end(), token);
}

SpecialTokens special_tokens(const ModelShape& shape) {
  SpecialTokens special;
  special.vocabulary = shape.vocabulary;
  for (int64_t token : shape.eos_tokens)
    if (token >= 0 && token < shape.vocabulary) special.end.push_back(token);
  const int64_t fallback = special.end.empty() ? 0 : special.end.front();
  special.start = shape.bos_token.value_or(fallback);
  if (!shape.bos_token)
    log::warn("the model has no beginning-of-sequence token: texts begin with token {} ({})",
              fallback, special.end.empty() ? "the first id" : "its end-of-sequence token");
  if (special.start < 0 || special.start >= shape.vocabulary)
    fail(ExitCode::data, "bos_token_id is {}, expected 0 to {}", special.start,
         shape.vocabulary - 1);
  std::sort(special.end.begin(), special.end.end());
  special.end.erase(std::unique(special.end.begin(), special.end.end()), special.end.end());
  if (static_cast<int64_t>(special.end.size()) == shape.vocabulary)
    fail(ExitCode::data, "eos_token_id names all {} tokens of the vocabulary", shape.vocabulary);
  return special;
}

/// A uniform id that does not end the document it begins.
static int64_t random_first_token(const SpecialTokens& special, const DrawId& id) {
  const auto choices = special.vocabulary - static_cast<int64_t>(special.end.size());
  auto token = static_cast<int64_t>(uniform(id) * static_cast<double>(choices));
  for (int64_t end : special.end)
    if (token >= end) ++token;
  return token;
}

Sequence::Sequence(const CalibrationSettings& settings, const SpecialTokens& special, int64_t index,
                   SequenceMemory memory)
    : settings_(&settings), special_(&special), index_(index), memory_(memory) {
  restart();
}

Sequence::Next Sequence::next() const {
  if (in_document_ > 0 && special_->ends(last_token())) return {special_->start};
  if (in_document_ == 0 && settings_->prompt == PromptKind::random)
    return {random_first_token(*special_, draw_id())};
  return {std::nullopt, settings_->temperature_at(sampled_)};
}

DrawId Sequence::draw_id() const {
  return {static_cast<uint64_t>(settings_->seed), static_cast<uint32_t>(settings_->set),
          static_cast<uint32_t>(index_), static_cast<uint32_t>(attempt_),
          static_cast<uint32_t>(written_)};
}

void Sequence::write_given(int64_t token) {
  const bool begins = in_document_ > 0 && special_->ends(last_token());
  write(token, 0, 0);
  in_document_ = begins ? 0 : in_document_ + 1;
  if (begins) sampled_ = 0;
}

void Sequence::write_drawn(int64_t token, float log_prob, double temperature) {
  const bool ends = special_->ends(token);
  if (ends && settings_->end_of_text == EndOfText::redraw && written_ + 1 < settings_->length) {
    if (++attempt_ == most_attempts)
      fail(
          ExitCode::data,
          "calibration.end_of_text redraw: sequence {} of set {} met the end of its text before {} "
          "tokens in all of {} attempts; try pack or ban, or a shorter calibration.length",
          index_, settings_->set, settings_->length, most_attempts);
    return restart();
  }
  write(token, log_prob, temperature);
  ++in_document_;
  ++sampled_;
  if (ends && token == special_->start) in_document_ = sampled_ = 0;  // it begins the next one too
}

void Sequence::write(int64_t token, float log_prob, double temperature) {
  memory_.tokens[written_] = static_cast<int32_t>(token);
  memory_.log_prob[written_] = log_prob;
  memory_.temperature[written_] = static_cast<float>(temperature);
  ++written_;
}

void Sequence::restart() {
  written_ = in_document_ = sampled_ = 0;
  write(special_->start, 0, 0);
}

}  // namespace selfcal
