// Which weights go, and their errors fed forward. Compiled without contraction: every instruction
// set must come to the same scores.
#include "stages/lanes/rounding.hpp"

namespace selfcal::lanes::SELFCAL_INSTRUCTION_SET {

void score_columns(const float* tile, int64_t columns, const float* upper, int64_t stride,
                   float* scores) {
  for (int64_t j = 0; j < columns; ++j) {
    for (int64_t row = 0; row < rows; row += width) {
      const Vector weight = load(tile + j * rows + row);
      store(scores + j * rows + row, score_of(weight, upper[j * (stride + 1)]));
    }
  }
}

void keep_best(const float* scores, int64_t columns, const Pattern& pattern, float* kept) {
  for (int64_t first = 0; first < columns; first += pattern.of) {
    for (int64_t row = 0; row < rows; row += width) {
      const int64_t at = first * rows + row;
      for (int j = 0; j < pattern.of; ++j)
        store(kept + at + j * rows, stays<Vector>(pattern, j, columns_of(scores + at)));
    }
  }
}

void prune_with_feedback(const Grid& grid, const Pattern& pattern, float* tile, int64_t columns,
                         const float* upper, int64_t stride, const int32_t* group,
                         const float* scale, const float* zero, float* kept, float* codes,
                         float* errors) {
  const auto solve = [&](auto tile_rows) {
    solve_step(grid, pattern, group, tile_rows, 0, columns, upper, stride);
  };
  if (grid.quantises)
    solve(TileRows<true, true>{tile, codes, kept, errors, scale, zero});
  else
    solve(TileRows<true, false>{tile, codes, kept, errors, scale, zero});
}

}  // namespace selfcal::lanes::SELFCAL_INSTRUCTION_SET
