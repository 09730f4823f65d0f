// What a job takes, by phase, by formula from a machine's rates.
#pragma once
#include <vector>

#include "pipeline/layer_kinds.hpp"
#include "pipeline/layout.hpp"
#include "pipeline/machine.hpp"
#include "pipeline/phase_timer.hpp"
#include "pipeline/sizes.hpp"

namespace selfcal {

/// Seconds of the busiest rank in each phase; they add up to the job's, since the phases wait for
/// each other. `threads`: of a rank. A machine without rates gives zeros.
PhaseSeconds expected_seconds(const RunConfig& config, const ModelSizes& model,
                              const LayerKinds& kinds, const Layout& layout, const Machine& machine,
                              int threads);

/// What of them is the pass over the dense model before the first layer that counts outliers, where
/// the job asks for it.
PhaseSeconds outlier_seconds(const RunConfig& config, const ModelSizes& model,
                             const LayerKinds& kinds, const Layout& layout, const Machine& machine,
                             int threads);

/// Seconds in which a team of so many compresses each layer, by the layer's own settings.
std::vector<double> layer_seconds(const RunConfig& config, const ModelSizes& model,
                                  const LayerKinds& kinds, int team, const Machine& machine,
                                  int threads);

double sum(const PhaseSeconds& seconds);

}  // namespace selfcal
