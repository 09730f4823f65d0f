// AWQ's clip search: the largest weights of a group are cut off where that makes its outputs
// better.
#pragma once
#include "stages/solve/quadratic_form.hpp"
#include "stages/solve/row_solver.hpp"

namespace selfcal {

/// One Hessian's diagonal blocks, packed; const and shared by all threads.
class ClipSearch {
 public:
  ClipSearch(const at::Tensor& hessian, const Groups& groups, const lanes::Grid& grid,
             const lanes::Kernels& kernels, const kernels::Context& context);

  /// Rounds tiles float32 [tiles, columns, 32]. Each row's group is cut at the share 1, 0.95 ..
  /// 0.55 of its largest |weight| that has the least e H e^T over the group's own columns.
  TileSolution operator()(const at::Tensor& tiles) const;

 private:
  at::Tensor cut(const at::Tensor& tiles, int64_t group) const;

  Groups groups_;
  lanes::Grid grid_;
  const lanes::Kernels& kernels_;
  std::vector<QuadraticForm> forms_;  // by group
};

}  // namespace selfcal
