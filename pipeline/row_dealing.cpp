#include "pipeline/row_dealing.hpp"

#include <algorithm>
#include <functional>
#include <numeric>

namespace selfcal {
namespace {

/// Of `work`, what each rank does so that the busiest has as little as can be.
std::vector<double> shares_of(double work, const std::vector<double>& loads) {
  std::vector<double> rising = loads;
  std::ranges::sort(rising);
  double level = 0, below = 0;  // all ranks with less reach the level
  for (size_t ranks = 1; ranks <= rising.size(); ++ranks) {
    below += rising[ranks - 1];
    level = (work + below) / static_cast<double>(ranks);
    if (ranks == rising.size() || level <= rising[ranks]) break;
  }
  std::vector<double> shares;
  for (const double load : loads) shares.push_back(std::max(0.0, level - load));
  return shares;
}

}  // namespace

std::vector<RowRun> deal_rows(const std::vector<RowsToDeal>& matrices,
                              const std::vector<double>& loads) {
  double work = 0;
  for (const auto& matrix : matrices) work += static_cast<double>(matrix.rows) * matrix.row_cost;
  std::vector<double> ends = shares_of(work, loads);
  std::partial_sum(ends.begin(), ends.end(), ends.begin());

  std::vector<RowRun> runs;
  double done = 0;
  size_t rank = 0;
  for (const auto& matrix : matrices)
    for (int64_t first = 0; first < matrix.rows; first += matrix.tile) {
      const int64_t rows = std::min(matrix.tile, matrix.rows - first);
      const double cost = static_cast<double>(rows) * matrix.row_cost;
      // A tile goes to the rank that has its middle.
      while (rank + 1 < ends.size() && done + cost / 2 >= ends[rank]) ++rank;
      done += cost;
      const int owner = static_cast<int>(rank);
      if (!runs.empty() && runs.back().problem == matrix.problem && runs.back().owner == owner)
        runs.back().rows += rows;
      else
        runs.push_back({matrix.problem, first, rows, owner});
    }
  return runs;
}

}  // namespace selfcal
