// One copy of the model spread over several ranks that sample together: each holds a run of layers,
// and as many steps are in flight as there are ranks, so that all of them work all the time. A step
// is one of several micro-batches.
#pragma once
#include <functional>
#include <span>
#include <vector>

#include "comm/communicator.hpp"
#include "pipeline/phase_timer.hpp"
#include "stages/generate/decoder.hpp"

namespace selfcal {

class Replica {
 public:
  /// Reads this rank's run of layers: run `ranks.rank()` of `ranks.size()` (see decode_runs).
  /// `ranks`: two or more; `model` and the pool of `context` outlive it. Independent. The text is
  /// that of a Generator, and so is `at_once`.
  Replica(Communicator ranks, const Model& model, const CalibrationSettings& settings,
          kernels::Context context, PhaseTimer& timer, int64_t at_once);

  /// Collective over the replica: samples the micro-batches in this order. `on_finished` is called
  /// on the last rank, which chooses the tokens. `poll(tokens in flight)` is called on each rank
  /// before every step and while it waits; when it answers true on the last rank, what is in flight
  /// is dropped and all ranks return.
  void sample(const std::vector<int64_t>& batches,
              const std::function<void(MicroBatch)>& on_finished,
              const std::function<bool(int64_t)>& poll);

 private:
  void pass_on(int64_t slots, const std::function<bool(int64_t)>& poll);
  void write(std::span<const int64_t> waiting, int64_t slots,
             const std::function<void(MicroBatch)>& on_finished,
             const std::function<bool(int64_t)>& poll);

  Communicator ranks_;
  const Model& model_;
  TextRules rules_;
  int64_t at_once_, rows_;  // micro-batches and sequences of a step
  kernels::Context context_;
  PhaseTimer& timer_;
  Decoder decoder_;
};

}  // namespace selfcal
