// A tile of rows as the arithmetic of a row sees it. For files that are compiled without
// contraction.
#pragma once
#include "stages/lanes/row_feedback.hpp"
#include "stages/lanes/vector.hpp"

namespace selfcal::lanes {
namespace {

inline ScaleAndZero<Vector> load(const float* scale, const float* zero) {
  return {load(scale), load(zero)};
}

/// The columns of a tile from `tile` on, one vector of rows of each.
inline auto columns_of(const float* tile) {
  return [tile](int64_t j) { return load(tile + j * rows); };
}

/// The columns of a step.
template <bool pruned, bool quantised>
struct TileRows {
  using Number = Vector;
  static constexpr int parts = rows / width;

  float *weights, *codes, *keeps, *errors;
  const float *scales, *zeros;

  static int64_t at(int64_t j, int part) { return j * rows + part * width; }
  Vector weight(int64_t j, int part) const { return load(weights + at(j, part)); }
  void set_weight(int64_t j, int part, Vector value) { store(weights + at(j, part), value); }
  void set_code(int64_t j, int part, Vector value) { store(codes + at(j, part), value); }
  void set_error(int64_t j, int part, Vector value) { store(errors + at(j, part), value); }
  static bool prunes() { return pruned; }
  static bool quantises() { return quantised; }
  Vector kept(int64_t j, int part) const { return load(keeps + at(j, part)); }
  void set_kept(int64_t j, int part, Vector value) { store(keeps + at(j, part), value); }
  ScaleAndZero<Vector> parameters(int64_t group, int part) const {
    return load(scales + at(group, part), zeros + at(group, part));
  }
};

}  // namespace
}  // namespace selfcal::lanes
