// How a method's settings become a grid of codes and a layout of groups.
#pragma once
#include <ATen/core/Tensor.h>

#include <vector>

#include "stages/lanes/lanes.hpp"
#include "stages/solve/method.hpp"

namespace selfcal {

/// The quantiser of the settings; codes are rounded to weights of `weight_dtype` (float32, bfloat16
/// or float16).
lanes::Grid grid_of(const MethodSettings& settings, at::ScalarType weight_dtype);

/// That of the data-free control: rounded in whole ranges, unless the method is `nearest`, which is
/// its own control.
lanes::Grid grid_of_control(const MethodSettings& settings, at::ScalarType weight_dtype);

/// Runs of columns that share a scale and a zero. A method works on positions, which are columns in
/// the order of the factor's permutation.
struct Groups {
  int64_t size = 0;  // columns a group; the last may be shorter
  int64_t count = 0;
  bool dynamic =
      false;  // scales are found on the way, from weights that earlier errors have changed
  bool by_position = false;  // groups are runs of positions: their columns need a g_idx
  std::vector<int32_t> of_position;
};

/// permutation: int64 [columns]; position -> column.
Groups lay_out_groups(const MethodSettings& settings, const at::Tensor& permutation);

/// Groups as runs of columns, scales from the weights as they are: those of the data-free control.
Groups plain_groups(const MethodSettings& settings, int64_t columns);

/// g_idx: int32 [columns]; the group of each column.
at::Tensor group_of_columns(const Groups& groups, const at::Tensor& permutation);

}  // namespace selfcal
