// One row of a micro-batch while it is written: which token comes next, and whether it is drawn.
#pragma once
#include <cstdint>
#include <optional>
#include <vector>

#include "base/random.hpp"
#include "stages/generate/settings.hpp"
#include "stages/model/model.hpp"

namespace selfcal {

/// The token ids that matter to the text's form.
struct SpecialTokens {
  int64_t start = 0;         // every document begins with it
  std::vector<int64_t> end;  // sorted; each ends a document
  int64_t vocabulary = 0;

  bool ends(int64_t token) const;
};

/// Of a model: its start token is its BOS, else its first EOS, else token 0 (said in the log).
SpecialTokens special_tokens(const ModelShape& shape);

/// Where a row's tokens, log-probabilities and temperatures go: [length] each.
struct SequenceMemory {
  int32_t* tokens;
  float* log_prob;
  float* temperature;
};

class Sequence {
 public:
  /// `settings` and `special` outlive the sequence. It starts with the start token.
  Sequence(const CalibrationSettings& settings, const SpecialTokens& special, int64_t index,
           SequenceMemory memory);

  bool complete() const { return written_ == settings_->length; }
  int64_t written() const { return written_; }
  int64_t last_token() const { return memory_.tokens[written_ - 1]; }

  /// What the next position needs: the token itself where it is given, else its temperature.
  struct Next {
    std::optional<int64_t> given;
    double temperature = 0;
  };
  Next next() const;
  /// The random number that belongs to the next position.
  DrawId draw_id() const;

  void write_given(int64_t token);
  void write_drawn(int64_t token, float log_prob, double temperature);

 private:
  void write(int64_t token, float log_prob, double temperature);
  void restart();

  const CalibrationSettings* settings_;
  const SpecialTokens* special_;
  int64_t index_;
  SequenceMemory memory_;
  int64_t written_ = 0;
  int64_t in_document_ = 0;  // tokens of this document behind its start token
  int64_t sampled_ = 0;      // tokens of this document drawn from the model
  int64_t attempt_ = 0;
};

}  // namespace selfcal
