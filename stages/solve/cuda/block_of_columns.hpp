// One row through one block of columns. The CPU twin and the CUDA kernel run these very functions,
// so that they differ in nothing but where the row lies; the arithmetic is that of stages/lanes.
#pragma once
#include "stages/lanes/row_feedback.hpp"

namespace selfcal::by_row {

using lanes::Grid;
using lanes::Pattern;

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

namespace {

/// a * b + sum, rounded once. (A template, because the call is no constant to every compiler.)
template <class Float>
constexpr Float fused(Float a, Float b, Float sum) {
  return __builtin_fmaf(a, b, sum);
}

/// sum_k upper[(k - first) * stride] * row.error(k), first <= k < last, in order.
template <class Row>
constexpr float product(const float* upper, int64_t stride, const Row& row, int64_t first,
                        int64_t last) {
  float sum = 0;
  for (int64_t k = first; k < last; ++k, upper += stride) sum = fused(*upper, row.error(k), sum);
  return sum;
}

/// Scales of the groups that begin in [first, last).
template <class Row>
constexpr void find_scales(const Columns& columns, Row& row, int64_t first, int64_t last) {
  const int64_t size = columns.group_size;
  const auto weight = [&](int64_t j) { return row.weight(j); };
  for (int64_t group = (first + size - 1) / size; group * size < last; ++group) {
    const int64_t begin = group * size,
                  end = begin + size < columns.count ? begin + size : columns.count;
    row.set_parameters(group, lanes::scale_and_zero<float>(columns.grid, weight, begin, end));
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
    const float* pivot = block.upper + (first - block.first) * (block.stride + 1);
    lanes::solve_step(columns.grid, columns.pattern, columns.group, row, first, last, pivot,
                      block.stride);
    for (int64_t j = last; j < block.last; ++j) {
      const float* upper = pivot + (j - first);
      row.set_weight(j, 0, row.weight(j) - product(upper, block.stride, row, first, last));
    }
    first = last;
  }
}

}  // namespace
}  // namespace selfcal::by_row
