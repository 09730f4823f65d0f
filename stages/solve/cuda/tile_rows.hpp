// Where the numbers of a row lie in tiles [columns][rows], and what a thread does with a row there.
#pragma once
#include "stages/solve/cuda/block_of_columns.hpp"

namespace selfcal::by_row {

/// Tiles of rows one after the other, in the memory of whoever solves them.
struct TileArrays {
  int64_t tiles = 0;
  int64_t rows = 0;  // of a tile, a multiple of 32
  int64_t groups = 0;
  float* weight = nullptr;  // [tiles][columns][rows]; in: the weights, out: as they are stored
  float* codes = nullptr;   // like weight, where weights are quantised, else null
  float* kept = nullptr;    // like weight, where weights are pruned, else null: 1 stays, 0 goes
  float* scale = nullptr;   // [tiles][groups][rows], where weights are quantised
  float* zero = nullptr;
  float* errors = nullptr;  // [tiles][block][rows]: of the running block
};

namespace {

/// The first entry of a tile's row in an array of `columns` entries a row.
constexpr float* row_at(float* array, const TileArrays& memory, int64_t tile, int64_t columns,
                        int64_t row) {
  return array == nullptr ? nullptr : array + tile * columns * memory.rows + row;
}

/// A row of a tile. The weights of the block that is solved, and its errors, lie apart, in faster
/// memory: 32 floats from column to column.
struct StagedRow {
  using Number = float;
  static constexpr int parts = 1;

  float *weights, *codes, *keeps, *scales, *zeros;  // the row's first entries
  int64_t stride;                                   // from column to column
  float *staged, *errors;                           // of the block's columns
  int64_t first, last;                              // of the block

  constexpr float weight(int64_t j, int = 0) const {
    const bool in_block = j >= first && j < last;
    return in_block ? staged[(j - first) * lanes::rows] : weights[j * stride];
  }
  constexpr void set_weight(int64_t j, int, float value) {
    staged[(j - first) * lanes::rows] = value;
  }
  constexpr void set_code(int64_t j, int, float value) { codes[j * stride] = value; }
  constexpr bool prunes() const { return keeps != nullptr; }
  constexpr bool quantises() const { return codes != nullptr; }
  constexpr float kept(int64_t j, int) const { return keeps[j * stride]; }
  constexpr void set_kept(int64_t j, int, float value) { keeps[j * stride] = value; }
  constexpr float error(int64_t j) const { return errors[(j - first) * lanes::rows]; }
  constexpr void set_error(int64_t j, int, float value) {
    errors[(j - first) * lanes::rows] = value;
  }
  constexpr lanes::ScaleAndZero<float> parameters(int64_t group, int) const {
    return {scales[group * stride], zeros[group * stride]};
  }
  constexpr void set_parameters(int64_t group, const lanes::ScaleAndZero<float>& found) {
    scales[group * stride] = found.scale;
    zeros[group * stride] = found.zero;
  }
};

/// Of a row whose weights lie as in `memory`; nothing of a block is staged.
constexpr StagedRow row_of_tile(const TileArrays& memory, int64_t columns, int64_t tile,
                                int64_t row) {
  return {row_at(memory.weight, memory, tile, columns, row),
          row_at(memory.codes, memory, tile, columns, row),
          row_at(memory.kept, memory, tile, columns, row),
          row_at(memory.scale, memory, tile, memory.groups, row),
          row_at(memory.zero, memory, tile, memory.groups, row),
          memory.rows,
          nullptr,
          nullptr,
          0,
          0};
}

/// Scale and zero of a run of group_size positions, from the weights as they are.
constexpr void find_scale_of_group(const Columns& columns, const TileArrays& memory, int64_t tile,
                                   int64_t row, int64_t group) {
  StagedRow all = row_of_tile(memory, columns.count, tile, row);
  find_scales(columns, all, group * columns.group_size, group * columns.group_size + 1);
}

/// Row `row` of a tile through a block. `staged`, `errors`: room for the block's columns, 32 floats
/// apart. The block's errors stay in memory.errors for the columns beyond it.
constexpr void solve_row_of_tile(const Columns& columns, const TileArrays& memory, int64_t tile,
                                 int64_t row, const Block& block, float* staged, float* errors) {
  StagedRow staged_row = row_of_tile(memory, columns.count, tile, row);
  staged_row.staged = staged;
  staged_row.errors = errors;
  staged_row.first = block.first;
  staged_row.last = block.last;
  for (int64_t j = block.first; j < block.last; ++j)
    staged_row.set_weight(j, 0, staged_row.weights[j * memory.rows]);
  solve_block(columns, staged_row, block);
  float* left = row_at(memory.errors, memory, tile, columns.block, row);
  for (int64_t j = block.first; j < block.last; ++j) {
    staged_row.weights[j * memory.rows] = staged_row.weight(j);
    left[(j - block.first) * memory.rows] = staged_row.error(j);
  }
}

}  // namespace
}  // namespace selfcal::by_row
