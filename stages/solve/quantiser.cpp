#include "stages/solve/quantiser.hpp"

#include <ATen/ATen.h>

#include "base/error.hpp"

namespace selfcal {
namespace {

lanes::Format format_of(at::ScalarType dtype, const char* what) {
  if (dtype == at::kFloat) return lanes::Format::float32;
  if (dtype == at::kBFloat16) return lanes::Format::bfloat16;
  if (dtype == at::kHalf) return lanes::Format::float16;
  fail(ExitCode::config, "{} is {}, expected float32, bfloat16 or float16", what, toString(dtype));
}

}  // namespace

lanes::Grid grid_of(const MethodSettings& settings, at::ScalarType weight_dtype) {
  lanes::Grid grid;
  grid.quantises = settings.quantises();
  grid.largest_code = float((1 << settings.bits) - 1);
  grid.symmetric = settings.symmetric;
  grid.search = settings.mse == AutoFlag::yes;
  grid.scale = format_of(settings.scale_dtype, "scale_dtype");
  grid.weight = format_of(weight_dtype, "the weight's dtype");
  return grid;
}

lanes::Grid grid_of_control(const MethodSettings& settings, at::ScalarType weight_dtype) {
  lanes::Grid grid = grid_of(settings, weight_dtype);
  grid.search = grid.search && settings.name == MethodName::nearest;
  return grid;
}

Groups plain_groups(const MethodSettings& settings, int64_t columns) {
  Groups groups;
  groups.size = settings.group_size == -1 ? columns : std::min(settings.group_size, columns);
  groups.count = (columns + groups.size - 1) / groups.size;
  groups.of_position.resize(columns);
  for (int64_t column = 0; column < columns; ++column)
    groups.of_position[column] = int32_t(column / groups.size);
  return groups;
}

Groups lay_out_groups(const MethodSettings& settings, const at::Tensor& permutation) {
  const int64_t columns = permutation.size(0);
  Groups groups = plain_groups(settings, columns);
  const bool whole_rows = settings.group_size == -1;
  groups.by_position = settings.act_order == ActOrder::dynamic_order && !whole_rows;
  const bool fixed =
      settings.static_groups == AutoFlag::yes && settings.act_order != ActOrder::dynamic_order;
  groups.dynamic = !whole_rows && !fixed && settings.act_order != ActOrder::static_order;
  if (!groups.by_position) {
    const auto* column = permutation.const_data_ptr<int64_t>();
    for (int64_t position = 0; position < columns; ++position) {
      groups.of_position[position] = int32_t(column[position] / groups.size);
    }
  }
  return groups;
}

at::Tensor group_of_columns(const Groups& groups, const at::Tensor& permutation) {
  at::Tensor group = at::empty({permutation.size(0)}, at::kInt);
  const auto* column = permutation.const_data_ptr<int64_t>();
  auto* into = group.mutable_data_ptr<int32_t>();
  for (size_t position = 0; position < groups.of_position.size(); ++position) {
    into[column[position]] = groups.of_position[position];
  }
  return group;
}

}  // namespace selfcal
