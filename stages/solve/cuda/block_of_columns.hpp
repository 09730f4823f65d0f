// One row through one block of columns: GPTQ (arXiv 2210.17323) and SparseGPT's n:m (arXiv
// 2301.00774), alone or together. The CPU twin and the CUDA kernel run these very functions, so
// that they differ in nothing but where the row lies.
#pragma once
#include "stages/solve/cuda/row_arithmetic.hpp"

namespace selfcal::by_row {

/// When the scale of a group is found.
enum class Scales {
  given,     // before the solve
  of_block,  // of all groups that begin in a block, before the block (published)
  of_step,   // of each group before its first column, from the weights as they are then
};

/// What all rows share. Positions are columns in the factor's order.
struct Columns {
  Grid grid;
  Pattern pattern;  // of == 0: nothing is pruned
  Scales scales = Scales::given;
  int64_t count = 0;
  int64_t block = 0;               // columns whose errors reach the columns beyond them together
  int64_t step = 0;                // columns of a block whose errors reach the rest of it together
  int64_t group_size = 0;          // of groups whose scales are not given
  const int32_t* group = nullptr;  // of each position
};

/// About 16 columns a step, whole runs of an n:m pattern.
constexpr int64_t columns_of_step(const Pattern& pattern) {
  constexpr int64_t usual = 16;
  const int64_t run = pattern.of > 1 ? pattern.of : 1;
  return run > usual ? run : usual / run * run;
}

/// Columns [first, last), and where their part of the factor lies: upper[i * stride + j] is U's
/// entry at row first + i, column first + j.
struct Block {
  int64_t first, last;
  const float* upper;
  int64_t stride;
};

/// sum_k upper[k * stride] * error(k), k < depth, in order.
template <class Error>
constexpr float product(const float* upper, int64_t stride, int64_t depth, const Error& error) {
  float sum = 0;
  for (int64_t k = 0; k < depth; ++k) sum = fused(upper[k * stride], error(k), sum);
  return sum;
}

/// Scales of the groups that begin in [first, last).
template <class Row>
constexpr void find_scales(const Columns& columns, Row& row, int64_t first, int64_t last) {
  const int64_t size = columns.group_size;
  for (int64_t group = (first + size - 1) / size; group * size < last; ++group) {
    const int64_t begin = group * size,
                  end = begin + size < columns.count ? begin + size : columns.count;
    row.set_parameters(group, find_scale(columns.grid, row, begin, end));
  }
}

/// Which of a run of columns stay, by what their loss would cost now; of equal ones the first goes.
template <class Row>
constexpr void choose_kept(const Pattern& pattern, Row& row, int64_t j, const Block& block) {
  const auto score = [&](int64_t i) {
    return absolute(row.weight(i)) / block.upper[(i - block.first) * (block.stride + 1)];
  };
  for (int64_t i = j; i < j + pattern.of; ++i) {
    const float mine = score(i);
    int before = 0;
    for (int64_t other = j; other < j + pattern.of; ++other) {
      const float cost = score(other);
      before += other < i ? cost <= mine : cost < mine;
    }
    row.set_kept(i, before >= pattern.zeros);
  }
}

/// Rounds and prunes columns [first, last) one after the other.
template <class Row>
constexpr void solve_step(const Columns& columns, Row& row, int64_t first, int64_t last,
                          const Block& block) {
  const bool prunes = columns.pattern.of > 0;
  for (int64_t j = first; j < last; ++j) {
    if (prunes && (j - first) % columns.pattern.of == 0)
      choose_kept(columns.pattern, row, j, block);
    const float* upper = block.upper + (j - block.first) * block.stride;
    const float weight = row.weight(j), wanted = !prunes || row.is_kept(j) ? weight : 0.0f;
    float stored = 0;
    if (columns.grid.quantises) {
      const ScaleAndZero parameters = row.parameters(columns.group[j]);
      const float code = code_of(columns.grid, wanted, parameters.scale, parameters.zero);
      row.set_code(j, code);
      stored = weight_of(columns.grid, code, parameters.scale, parameters.zero);
    } else {
      stored = round_to(columns.grid.weight, wanted);
    }
    const float error = (weight - stored) / upper[j - block.first];
    row.set_weight(j, stored);
    row.set_error(j - block.first, error);
    for (int64_t i = j + 1; i < last; ++i)
      row.set_weight(i, row.weight(i) - error * upper[i - block.first]);
  }
}

/// All of a block for one row; what its errors take off the columns beyond it is left to a product
/// of matrices.
template <class Row>
constexpr void solve_block(const Columns& columns, Row& row, const Block& block) {
  if (columns.scales == Scales::of_block) find_scales(columns, row, block.first, block.last);
  for (int64_t first = block.first; first < block.last;) {
    int64_t last = first + columns.step < block.last ? first + columns.step : block.last;
    if (columns.scales == Scales::of_step) {
      const int64_t next_group = (first / columns.group_size + 1) * columns.group_size;
      last = last < next_group ? last : next_group;
      find_scales(columns, row, first, first + 1);
    }
    solve_step(columns, row, first, last, block);
    const int64_t row_of_step = first - block.first;
    const auto error = [&](int64_t k) { return row.error(row_of_step + k); };
    for (int64_t j = last; j < block.last; ++j) {
      const float* upper = block.upper + row_of_step * block.stride + (j - block.first);
      row.set_weight(j, row.weight(j) - product(upper, block.stride, last - first, error));
    }
    first = last;
  }
}

}  // namespace selfcal::by_row
