// Where the numbers of a row lie in tiles [columns][32 rows], and a block of columns solved there.
#pragma once
#include "stages/solve/cuda/block_of_columns.hpp"

namespace selfcal::by_row {

/// Tiles [columns][32 rows] one after the other, in the memory of whoever solves them.
struct TileArrays {
  int64_t tiles = 0;
  int64_t groups = 0;
  float* weight = nullptr;  // [tiles][columns][32]; in: the weights, out: as they are stored
  float* codes = nullptr;   // like weight, where weights are quantised
  float* kept = nullptr;    // like weight, where weights are pruned: 1 stays, 0 goes
  float* scale = nullptr;   // [tiles][groups][32], where weights are quantised
  float* zero = nullptr;
  float* errors = nullptr;  // [tiles][block][32]: of the running block
};

/// A row of a tile. The weights of the block that is solved lie apart, in faster memory.
struct StagedRow {
  float *weights, *codes, *keeps, *scales, *zeros;  // the row's first entries
  float *staged, *errors;                           // of the block's columns
  int64_t first, last;                              // of the block

  constexpr float weight(int64_t j) const {
    const bool in_block = j >= first && j < last;
    return in_block ? staged[(j - first) * lanes::rows] : weights[j * lanes::rows];
  }
  constexpr void set_weight(int64_t j, float value) { staged[(j - first) * lanes::rows] = value; }
  constexpr void set_code(int64_t j, float value) { codes[j * lanes::rows] = value; }
  constexpr bool is_kept(int64_t j) const { return keeps[j * lanes::rows] != 0.0f; }
  constexpr void set_kept(int64_t j, bool stays) { keeps[j * lanes::rows] = stays ? 1.0f : 0.0f; }
  constexpr float error(int64_t k) const { return errors[k * lanes::rows]; }
  constexpr void set_error(int64_t k, float value) { errors[k * lanes::rows] = value; }
  constexpr ScaleAndZero parameters(int64_t group) const {
    return {scales[group * lanes::rows], zeros[group * lanes::rows]};
  }
  constexpr void set_parameters(int64_t group, ScaleAndZero found) {
    scales[group * lanes::rows] = found.scale;
    zeros[group * lanes::rows] = found.zero;
  }
};

/// The first entry of a tile's row in an array of `columns` entries a row.
constexpr float* row_at(float* array, int64_t tile, int64_t columns, int64_t row) {
  return array == nullptr ? nullptr : array + tile * columns * lanes::rows + row;
}

/// Row `row` of a tile through a block. `staged`, `errors`: room for the block's columns, 32 floats
/// apart. The block's errors stay in memory.errors for the columns beyond it.
constexpr void solve_row_of_tile(const Columns& columns, const TileArrays& memory, int64_t tile,
                                 int64_t row, const Block& block, float* staged, float* errors) {
  StagedRow staged_row{row_at(memory.weight, tile, columns.count, row),
                       row_at(memory.codes, tile, columns.count, row),
                       row_at(memory.kept, tile, columns.count, row),
                       row_at(memory.scale, tile, memory.groups, row),
                       row_at(memory.zero, tile, memory.groups, row),
                       staged,
                       errors,
                       block.first,
                       block.last};
  for (int64_t j = block.first; j < block.last; ++j)
    staged_row.set_weight(j, staged_row.weights[j * lanes::rows]);
  solve_block(columns, staged_row, block);
  float* left = row_at(memory.errors, tile, columns.block, row);
  for (int64_t j = block.first; j < block.last; ++j) {
    staged_row.weights[j * lanes::rows] = staged_row.weight(j);
    left[(j - block.first) * lanes::rows] = staged_row.error(j - block.first);
  }
}

}  // namespace selfcal::by_row
