// Samples self-calibration sequences from the model (arXiv 2410.17170) on one rank, some
// micro-batches side by side.
#pragma once
#include <functional>
#include <vector>

#include "stages/generate/decoder.hpp"
#include "storage/calibration_file.hpp"

namespace selfcal {

/// Holds the whole model's weights (in the compute dtype) for decoding. Independent: the text of a
/// micro-batch depends on its index and the settings only (see MicroBatchWriter).
class Generator {
 public:
  /// Reads all weights, a block at a time. `model` and the pool of `context` outlive the generator.
  /// `at_once`: micro-batches that share a step; see micro_batches_at_once().
  Generator(const Model& model, CalibrationSettings settings, kernels::Context context,
            int64_t at_once = 1);

  /// Samples the micro-batches, `at_once` of them at a time; each goes to on_finished as it ends.
  /// on_step(tokens of those in work) is called before every step; it may throw to stop. A redrawn
  /// row counts from its start again.
  void sample(const std::vector<int64_t>& indices,
              const std::function<void(MicroBatch)>& on_finished,
              const std::function<void(int64_t)>& on_step = {});

  /// The model's weights of a block, as read (for a teacher-forced forward by the same rank).
  const BlockWeights& block_weights(int64_t layer) const { return decoder_.block_weights(layer); }
  const OuterWeights& outer_weights() const { return decoder_.outer_weights(); }

 private:
  TextRules rules_;
  kernels::Context context_;
  int64_t at_once_;
  Decoder decoder_;
};

/// The whole set for the sources that need no model: rows [set * sequences, ...) of a given token
/// file (a calibration HDF5 file, or safetensors with `input_ids`) cut to `length`, or uniform
/// random ids of the whole vocabulary, special ones included. Bad files, ids outside the
/// vocabulary, short rows and too few rows are ExitCode::data.
CalibrationSet read_token_source(const CalibrationSettings& settings, const ModelShape& shape);
CalibrationSet draw_vocabulary(const CalibrationSettings& settings, const ModelShape& shape);

}  // namespace selfcal
