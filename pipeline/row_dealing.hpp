// Which rank of a team works on which rows of a stack of matrices.
#pragma once
#include <cstddef>
#include <cstdint>
#include <vector>

namespace selfcal {

/// Rows [first, first + rows) of matrix `problem`, for rank `owner`.
struct RowRun {
  size_t problem = 0;
  int64_t first = 0;
  int64_t rows = 0;
  int owner = 0;
};

/// A matrix whose rows are dealt in whole tiles.
struct RowsToDeal {
  size_t problem = 0;
  int64_t rows = 0;
  int64_t tile = 0;     // rows
  double row_cost = 1;  // of one row, in any unit
};

/// In runs, rank after rank and matrix after matrix, so that all ranks are done at about the same
/// time: `loads` is what each has to do beside. A rank has at most one run of a matrix.
std::vector<RowRun> deal_rows(const std::vector<RowsToDeal>& matrices,
                              const std::vector<double>& loads);

}  // namespace selfcal
