// The calibration set of a job: found in the run directory, read, drawn, or sampled by the
// generators.
#pragma once
#include <functional>

#include "pipeline/session.hpp"
#include "stages/generate/generator.hpp"

namespace selfcal {

struct Calibration {
  std::string content_hash;
  at::Tensor tokens;           // int32 [sequences, length], on every rank
  int64_t tokens_sampled = 0;  // by this run
  double sampling_seconds = 0;
};

/// Whether the run directory has the set of a job whose source is `self`. Looks at files; for one
/// rank.
bool is_sampled(const Session& session);

/// Collective over the world. A set that is already in the run directory is read (its hash is
/// checked); micro-batches that an interrupted run has left are kept. `on_sampled` is called on the
/// rank that has just sampled a micro-batch.
Calibration prepare_calibration(
    const Session& session,
    const std::function<void(const MicroBatch&, const Generator&)>& on_sampled);

}  // namespace selfcal
