// What decides the text of a calibration set.
#pragma once
#include <cstdint>
#include <string>

namespace selfcal {

enum class CalibrationSource { self, tokens, vocabulary };
enum class EndOfText { pack, ban, redraw };
enum class PromptKind { bos, random };

struct CalibrationSettings {
  CalibrationSource source = CalibrationSource::self;
  std::string tokens_path;  // source: tokens
  int64_t sequences = 128;
  int64_t length = 2048;
  int64_t set = 0;  // which disjoint draw
  int64_t seed = 0;
  int64_t micro_batch = 16;
  double temperature_initial = 1.0;
  double temperature_final = 1.0;
  int64_t temperature_steps =
      0;              // t_i = initial + i/steps (final - initial), i <= steps; then final
  int64_t top_k = 0;  // 0: off
  double top_p = 1.0;
  EndOfText end_of_text = EndOfText::pack;
  PromptKind prompt = PromptKind::bos;

  /// Temperature of the token that is sampled `index` tokens into its document (0: the first one
  /// after the start token). Without steps always the final one.
  double temperature_at(int64_t index) const;
  /// JSON of the fields that decide the content.
  std::string identity() const;
};

}  // namespace selfcal
