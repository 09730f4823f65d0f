// Is what lies in a run directory whole? Every file is read and every hash recomputed; nothing is
// trusted or changed.
#pragma once
#include <functional>
#include <string>
#include <vector>

#include "storage/checkpoint.hpp"
#include "storage/run_directory.hpp"

namespace selfcal {

struct Verdict {
  std::vector<std::string> lines;     // what was looked at, a line each
  std::vector<std::string> problems;  // what is wrong: file, what was found, what was expected
  bool whole() const { return problems.empty(); }
};

/// The model that the job of this name compresses; null where it is not at hand.
using DenseModels = std::function<const Checkpoint*(const std::string& job)>;

/// Calibration files: content hashes. Layers of each job: content hashes, that the fields of each
/// linear layer fit each other, one job id, no gaps, and the chain (each layer follows the one
/// before, or all stand alone: dense propagation). The gathered checkpoint: every tensor against
/// its layer. Exports: headers and index. The queue: what it says is done is there. With the model
/// that a job compressed: names, shapes and that its tensors are still those that were read. No run
/// there: ExitCode::config.
Verdict verify_run(const RunDirectory& run, const DenseModels& dense_of);
/// The same with one model for all jobs, or none.
inline Verdict verify_run(const RunDirectory& run, const Checkpoint* dense = nullptr) {
  return verify_run(run, [dense](const std::string&) { return dense; });
}

/// All lines, then all problems, as text.
std::string to_text(const Verdict& verdict);

}  // namespace selfcal
