// The layouts that a configuration leaves open.
#pragma once
#include <vector>

#include "pipeline/config.hpp"

namespace selfcal {

/// Settings with fewer counts left open, the simplest first; at least one. Not all of them need fit
/// the ranks. `busy_together`: whether several shards can be at work at once. `layers`: of the
/// model.
std::vector<LayoutSettings> layout_options(const LayoutSettings& settings, bool busy_together,
                                           int ranks, int64_t layers);

}  // namespace selfcal
