// What compressing one layer takes, by phase, by formula from a machine's rates.
#pragma once
#include <algorithm>
#include <set>

#include "pipeline/layer_kinds.hpp"
#include "pipeline/machine.hpp"
#include "pipeline/phase_timer.hpp"
#include "stages/solve/method.hpp"

namespace selfcal {

/// Of so many equal pieces, those of the busiest worker.
inline double busiest(int64_t pieces, int64_t workers) {
  const int64_t most = (pieces + workers - 1) / std::max<int64_t>(1, workers);
  return static_cast<double>(most);
}

/// Of a job's layers on ranks of one speed. Borrows all that it is given.
class LayerCost {
 public:
  /// `threads`: of a rank.
  LayerCost(const RunConfig& config, const ModelSizes& model, const Machine& machine, int threads);

  /// Seconds of the busiest rank of a team of so many; reading and writing, which go on beside
  /// other layers, are not among them.
  PhaseSeconds of(const BlockSettings& settings, int64_t members) const;

  /// Until a layer's file is there.
  double write_seconds(const BlockSettings& settings) const {
    return machine_.commit + compressed_bytes(settings) / machine_.disk;
  }

  /// What part of the machine's rates a rank has.
  double share() const { return share_; }
  /// Leaves of statistics.
  int64_t leaves() const { return leaves_; }
  /// Of all tokens through a block.
  double forward_seconds() const;
  /// Of the logits of so many tokens.
  double logits_seconds(double tokens) const;
  /// All tokens' hidden states.
  double hidden_bytes() const;
  double block_bytes() const { return static_cast<double>(model_.block_parameters) * element_; }
  /// Codes, and a scale and a zero point for each group, of the layers that are not skipped.
  double compressed_bytes(const BlockSettings& settings) const;
  double skipped_bytes(const BlockSettings& settings) const;
  /// What each rank of a team of so many sends to add up the statistics.
  double reduced_bytes(const BlockSettings& settings, int64_t members) const;

 private:
  /// What is done with an input.
  struct TapWork {
    bool is_measured = false, takes_products = false;
    std::set<FactorSettings> factors;
  };
  TapWork work_of(const BlockSettings& settings, size_t tap) const;
  /// Of the layers that read an input, or of all.
  double solve_seconds(const BlockSettings& settings, size_t tap, int64_t members) const;
  double solve_seconds(const BlockSettings& settings, int64_t members) const;
  double search_seconds(const BlockSettings& settings, double leaf_part, int64_t members) const;

  const RunConfig& config_;
  const ModelSizes& model_;
  const Machine& machine_;
  MethodSettings measured_;  // what the rates are of
  int64_t threads_;
  double share_, element_, tokens_;
  int64_t leaves_;
};

}  // namespace selfcal
