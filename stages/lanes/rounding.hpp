// From a weight to its code and back, a vector at a time. For files that are compiled without
// contraction.
#pragma once
#include "stages/lanes/vector.hpp"

namespace selfcal::lanes {
namespace {

inline Vector code_of(const Grid& grid, Vector weight, Vector scale, Vector zero) {
  // Clamped first, so that round_even holds for any weight.
  const Vector steps = smaller(larger(weight / scale, all(-1024.0f)), all(1024.0f));
  return smaller(larger(round_even(steps) + zero, all(0.0f)), all(grid.largest_code));
}

inline Vector weight_of(const Grid& grid, Vector code, Vector scale, Vector zero) {
  return round_to(grid.weight, (code - zero) * scale);
}

/// Rounds one vector of a column and keeps its codes; returns the rounded weights.
inline Vector round_vector(const Grid& grid, Vector weight, const float* scale, const float* zero,
                           float* codes) {
  const Vector step = load(scale), origin = load(zero);
  const Vector code = code_of(grid, weight, step, origin);
  store(codes, code);
  return weight_of(grid, code, step, origin);
}

}  // namespace
}  // namespace selfcal::lanes
