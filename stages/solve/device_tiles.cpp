#include "stages/solve/device_tiles.hpp"

#include <ATen/ATen.h>

#include <algorithm>

namespace selfcal {
namespace {

at::Tensor copied(const std::vector<int32_t>& numbers, at::Device memory) {
  at::Tensor tensor = at::empty({int64_t(numbers.size())}, at::kInt);
  std::ranges::copy(numbers, tensor.mutable_data_ptr<int32_t>());
  return tensor.to(memory);
}

float* data_of(const at::Tensor& tensor) {
  return tensor.defined() ? tensor.mutable_data_ptr<float>() : nullptr;
}

by_row::TileArrays arrays_of(const TileSolution& work, int64_t groups, const at::Tensor& errors) {
  return {work.weight.size(0),  work.weight.size(2), groups,
          data_of(work.weight), data_of(work.codes), data_of(work.kept),
          data_of(work.scale),  data_of(work.zero),  data_of(errors)};
}

}  // namespace

DeviceTiles::DeviceTiles(const MethodSettings& settings, at::ScalarType weight_dtype,
                         const Factor& factor, const kernels::Device& device)
    : settings_(settings),
      grid_(grid_of(settings, weight_dtype)),
      control_(grid_of_control(settings, weight_dtype)),
      groups_(lay_out_groups(settings, factor.permutation)),
      plain_(plain_groups(settings, factor.permutation.size(0))),
      device_(device),
      upper_(factor.upper),
      permutation_(factor.permutation.to(device.memory)),
      position_(factor.permutation.argsort().to(device.memory)),
      group_of_position_(copied(groups_.of_position, device.memory)),
      group_of_column_(copied(plain_.of_position, device.memory)),
      columns_(factor.permutation.size(0)) {
  const at::Tensor dead = factor.dead.ne(0);
  if (dead.any().item<bool>())
    live_ = dead.logical_not().to(at::kFloat).view({1, columns_, 1}).to(device.memory);
  unit_ = at::eye(std::min(settings.block_size, columns_), upper_.options());
}

by_row::Columns DeviceTiles::columns_of(const Course& course) const {
  by_row::Columns columns;
  columns.grid = course.grid;
  columns.pattern = course.pattern;
  if (course.groups.dynamic && course.grid.quantises) {
    const bool published = settings_.group_parameters == GroupParameters::published;
    columns.scales = published ? by_row::Scales::of_block : by_row::Scales::of_step;
  }
  columns.count = columns_;
  columns.block = std::min(settings_.block_size, columns_);
  columns.step = by_row::columns_of_step(course.pattern);
  columns.group_size = course.groups.size;
  columns.group = course.group_of_position.const_data_ptr<int32_t>();
  return columns;
}

TileSolution DeviceTiles::begin(const Course& course, const at::Tensor& tiles) const {
  TileSolution work;
  work.weight = tiles;
  if (course.pattern.of > 0) work.kept = at::empty_like(tiles);
  if (!course.grid.quantises) return work;
  work.codes = at::empty_like(tiles);
  work.scale = at::empty({tiles.size(0), course.groups.count, tiles.size(2)}, tiles.options());
  work.zero = at::empty_like(work.scale);
  return work;
}

void DeviceTiles::find_scales(const Course& course, TileSolution& work) const {
  device_.solver->find_scales(columns_of(course), arrays_of(work, course.groups.count, {}));
}

void DeviceTiles::run(const Course& course, TileSolution& work) const {
  const by_row::Columns columns = columns_of(course);
  const bool feeds_back = course.upper.size(0) == columns_;
  const at::Tensor errors =
      at::empty({work.weight.size(0), columns.block, work.weight.size(2)}, work.weight.options());
  const by_row::TileArrays arrays = arrays_of(work, course.groups.count, errors);
  for (int64_t first = 0; first < columns_; first += columns.block) {
    const int64_t last = std::min(first + columns.block, columns_), depth = last - first;
    const float* upper = data_of(course.upper);
    if (feeds_back) upper += first * (columns_ + 1);
    device_.solver->solve_block(columns, arrays, {first, last, upper, course.upper.size(1)});
    if (last == columns_ || !feeds_back) continue;
    const at::Tensor beyond =
        course.upper.narrow(0, first, depth).narrow(1, last, columns_ - last).t();
    for (int64_t tile = 0; tile < work.weight.size(0); ++tile)
      work.weight.select(0, tile)
          .narrow(0, last, columns_ - last)
          .addmm_(beyond, errors.select(0, tile).narrow(0, 0, depth), 1, -1);
  }
}

void DeviceTiles::find_scales_of_pruned(const Course& course, const at::Tensor& tiles,
                                        TileSolution& work) const {
  Course plain = course;
  plain.grid.quantises = false;
  plain.grid.weight = lanes::Format::float32;
  TileSolution pruned = begin(plain, tiles.index_select(1, permutation_));
  run(plain, pruned);
  const at::Tensor kept_on = std::exchange(work.weight, pruned.weight.index_select(1, position_));
  find_scales(course, work);
  work.weight = kept_on;
}

TileSolution DeviceTiles::operator()(const at::Tensor& tiles) const {
  const Course course{grid_, settings_.sparsity.pattern, groups_, group_of_position_, upper_};
  const at::Tensor alive = live_.defined() ? tiles * live_ : tiles;
  // As published: the scale of a whole row sees dead columns, the scales of groups do not.
  TileSolution work = begin(course, settings_.group_size == -1 ? tiles : alive);
  if (prunes_before_scales(settings_))
    find_scales_of_pruned(course, alive, work);
  else if (grid_.quantises && !groups_.dynamic)
    find_scales(course, work);
  work.weight = alive.index_select(1, permutation_);
  run(course, work);
  for (at::Tensor* tensor : {&work.weight, &work.codes, &work.kept})
    if (tensor->defined()) *tensor = tensor->index_select(1, position_);
  return work;
}

/// Through the same kernels, with a factor that has nothing beside its diagonal of ones: no error
/// reaches another column, and what pruning costs is the weight's size.
at::Tensor DeviceTiles::data_free(const at::Tensor& tiles) const {
  Course course{{}, settings_.sparsity.pattern, plain_, group_of_column_, unit_};
  course.grid.quantises = false;
  at::Tensor weight = tiles.clone();
  if (course.pattern.of > 0) {
    TileSolution pruned = begin(course, weight);
    run(course, pruned);
  }
  if (!grid_.quantises) return weight;
  course.grid = control_;
  course.pattern = {};
  TileSolution rounded = begin(course, weight);
  find_scales(course, rounded);
  run(course, rounded);
  return weight;
}

}  // namespace selfcal
