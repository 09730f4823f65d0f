// A run of columns rounded and pruned one after the other, each error fed to the columns behind it:
// GPTQ (arXiv 2210.17323) and SparseGPT (arXiv 2301.00774), alone or together; for one row in CUDA
// kernels and in their twin, for a tile of rows on CPUs. A `Row` is where the numbers lie:
//   Number, parts            one float; the vectors of a tile, taken side by side
//   weight(j, part)          and set_weight, set_code, set_error, kept, set_kept of a column
//   parameters(group, part)  scale and zero
//   prunes(), quantises()    whether weights go where kept is 0, and whether they become codes
#pragma once
#include "stages/lanes/row_arithmetic.hpp"

namespace selfcal::lanes {
namespace {

/// The root of what pruning a weight costs: the square of a small weight is 0.
template <class Number>
constexpr Number score_of(Number weight, float pivot) {
  return absolute(weight) / pivot;
}

/// 1 where column j of a run of score(0) ... stays, else 0: the lowest scores go, of equal ones the
/// first.
template <class Number, class Score>
constexpr Number stays(const Pattern& pattern, int j, const Score& score) {
  const Number mine = score(j);
  decltype((mine < Number{}) & 1) before{};  // an integer, or one a lane
  for (int i = 0; i < j; ++i) before += (score(i) <= mine) & 1;
  for (int i = j + 1; i < pattern.of; ++i) before += (score(i) < mine) & 1;
  return before >= pattern.zeros ? all<Number>(1) : Number{};
}

/// Which of a run of columns stay, by what their loss would cost now.
template <class Row>
constexpr void choose_kept(const Pattern& pattern, Row& row, int64_t first, const float* upper,
                           int64_t stride) {
  using Number = typename Row::Number;
  Number scores[Pattern::longest][Row::parts];
  for (int j = 0; j < pattern.of; ++j)
    for (int part = 0; part < Row::parts; ++part)
      scores[j][part] = score_of(row.weight(first + j, part), upper[j * (stride + 1)]);
  for (int part = 0; part < Row::parts; ++part) {
    const auto score = [&](int i) { return scores[i][part]; };
    for (int j = 0; j < pattern.of; ++j)
      row.set_kept(first + j, part, stays<Number>(pattern, j, score));
  }
}

/// Rounds, and prunes, a weight of column j; returns what is stored.
template <class Row>
constexpr typename Row::Number settle(const Grid& grid, Row& row, int64_t j, int64_t group,
                                      int part) {
  using Number = typename Row::Number;
  Number weight = row.weight(j, part);
  if (row.prunes()) weight = row.kept(j, part) != 0.0f ? weight : Number{};
  if (!row.quantises()) return round_to(grid.weight, weight);
  const ScaleAndZero<Number> parameters = row.parameters(group, part);
  const Number code = code_of(grid, weight, parameters);
  row.set_code(j, part, code);
  return weight_of(grid, code, parameters);
}

/// Columns [first, last), whole runs of the pattern. upper: U's entry at row and column `first`;
/// the error of a column is (weight - stored) / its pivot.
template <class Row>
constexpr void solve_step(const Grid& grid, const Pattern& pattern, const int32_t* group, Row& row,
                          int64_t first, int64_t last, const float* upper, int64_t stride) {
  using Number = typename Row::Number;
  for (int64_t j = first; j < last; ++j, upper += stride + 1) {
    if (row.prunes() && pattern.of > 0 && (j - first) % pattern.of == 0)
      choose_kept(pattern, row, j, upper, stride);
    const int64_t group_of_column = group[j];
    const Number pivot = all<Number>(*upper);
    Number error[Row::parts];
    for (int part = 0; part < Row::parts; ++part) {
      const Number weight = row.weight(j, part);
      const Number stored = settle(grid, row, j, group_of_column, part);
      error[part] = (weight - stored) / pivot;
      row.set_weight(j, part, stored);
      row.set_error(j, part, error[part]);
    }
    for (int64_t i = j + 1; i < last; ++i) {
      const Number factor = all<Number>(upper[i - j]);
      for (int part = 0; part < Row::parts; ++part)
        row.set_weight(i, part, row.weight(i, part) - error[part] * factor);
    }
  }
}

}  // namespace
}  // namespace selfcal::lanes
