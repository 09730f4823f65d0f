// calibration/<id>.h5: the sequences a model is calibrated on, and where they came from.
#pragma once
#include <ATen/core/Tensor.h>

#include <string>

#include "base/file.hpp"

namespace selfcal {

/// A calibration set of n sequences of `length` tokens.
struct CalibrationSet {
  at::Tensor tokens;       // int32 [n, length]
  at::Tensor lengths;      // int32 [n]: tokens before padding (equal to `length` unless a file had
                           // shorter rows)
  at::Tensor log_prob;     // float32 [n, length]: log-probability of each token under the sampling
                           // temperature; 0 where given
  at::Tensor temperature;  // float32 [n, length]: temperature that each token was drawn at; 0 where
                           // the token was given
  std::string source;      // self | tokens | vocabulary
  std::string settings;    // JSON text of all settings that decide the content
  int64_t seed = 0;
  int64_t set = 0;

  /// XXH3-128 over (dtype, shape, bytes) of the tokens and lengths.
  std::string content_hash() const;
};

/// Atomic. Throws ExitCode::io when the disk is full or the folder cannot be written.
void write_calibration(const fs::path& path, const CalibrationSet& set);
/// Reads and checks the stored content hash; a damaged file is ExitCode::data.
CalibrationSet read_calibration(const fs::path& path);

}  // namespace selfcal
