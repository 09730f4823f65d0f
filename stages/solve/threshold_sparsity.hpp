// SparseGPT without a pattern, as published: of each block of columns the lowest scores of the
// whole matrix go. All rows, on all ranks, go through the blocks together.
#pragma once
#include "stages/solve/gptq.hpp"

namespace selfcal {

class ThresholdSparsity {
 public:
  /// Borrows the solver's parts. `share`: of a block's entries.
  ThresholdSparsity(const GptqTiles& tiles, double share, const RowSolver& solver)
      : tiles_(tiles), share_(share), solver_(solver) {}

  /// Solves this rank's rows of the matrix. Collective over the team.
  void solve(const at::Tensor& weight, const RowTeam& team);

  /// Of the task whose first row this is.
  TileSolution finish(int64_t first) const;

 private:
  struct Task {
    int64_t rows;  // the last tile may be less than full
    TilesInWork work;
    std::vector<float> scores;  // of a block: [tiles][columns][32]
  };

  void load(const at::Tensor& weight);
  void score(Task& task, int64_t block) const;
  void keep_above(Task& task, int64_t block, float threshold) const;
  float find_threshold(int64_t block, const RowTeam& team) const;

  const GptqTiles& tiles_;
  double share_;
  const RowSolver& solver_;
  int64_t rows_of_a_task_ = 1;
  std::vector<Task> tasks_;
};

}  // namespace selfcal
