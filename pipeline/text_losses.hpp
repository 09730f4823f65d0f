// What jobs cost their models on text: that of an evaluation, and that of their calibration.
#pragma once
#include <map>
#include <optional>
#include <string>

#include "pipeline/job.hpp"
#include "stages/evaluate/perplexity.hpp"

namespace selfcal {

/// Of the calibration set that are scored, of 2048 tokens where sequences are not longer.
inline constexpr int64_t leaves_of_loss = 32;

/// The text of a job's evaluation in leaves; none where it is not asked for. What is wrong with the
/// file or the settings is ExitCode::data or config. Independent.
std::vector<ScoredLeaf> evaluation_text(const EvaluateSettings& settings, const ModelShape& shape);

/// The settings with the size of that text.
EvaluateSettings with_text_size(EvaluateSettings settings, const ModelShape& shape);

/// Equal where the dense model's perplexity is.
std::string evaluation_key(const RunConfig& config);

/// The losses of a run's jobs. Collective over the world, whose ranks have a leaf each in turn; the
/// same bits on any number of them. The dense model's are found once for all jobs of a text. Logits
/// that are not finite are ExitCode::data. Throws Stopped on all ranks when one wants to stop.
class TextLosses {
 public:
  /// Of the evaluation's text, after every layer is committed; nothing where it is not asked for.
  std::optional<PerplexityReport> perplexity(const Job& job);

  /// Of the first leaves of the job's calibration set, after every layer is committed: each token
  /// but a sequence's first is scored.
  CalibrationLossReport of_calibration(const Job& job);

 private:
  struct Losses {
    double dense = 0, compressed = 0;
  };
  /// `key`: of what the dense model's loss depends on.
  Losses measure(const Job& job, const char* what, const std::vector<ScoredLeaf>& text,
                 const std::string& key);

  std::map<std::string, double> dense_;  // by text and model
};

}  // namespace selfcal
