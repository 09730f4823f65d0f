#include "stages/solve/clip.hpp"

#include <ATen/ATen.h>

#include <algorithm>
#include <limits>

namespace selfcal {
namespace {

constexpr int cut_steps = 20, cuts_tried = 10;  // shares 1 - i / cut_steps

/// A layout of one group.
Groups one_group(int64_t columns) {
  Groups group;
  group.size = columns;
  group.count = 1;
  group.of_position.assign(static_cast<size_t>(columns), 0);
  return group;
}

}  // namespace

ClipSearch::ClipSearch(const at::Tensor& hessian, const Groups& groups, const lanes::Grid& grid,
                       const lanes::Kernels& kernels, const kernels::Context& context)
    : groups_(groups), grid_(grid), kernels_(kernels) {
  const int64_t columns = hessian.size(0);
  for (int64_t first = 0; first < columns; first += groups.size) {
    const int64_t count = std::min(groups.size, columns - first);
    const at::Tensor block = hessian.narrow(0, first, count).narrow(1, first, count).contiguous();
    forms_.emplace_back(block, kernels, context);
  }
}

/// The group's columns, float32 [tiles, columns of the group, 32], cut where it is best.
at::Tensor ClipSearch::cut(const at::Tensor& tiles, int64_t group) const {
  const Groups alone = one_group(tiles.size(1));
  const at::Tensor largest = tiles.abs().amax(1, /*keepdim=*/true);  // [tiles, 1, 32]
  at::Tensor best =
      at::full({tiles.size(0), lanes::rows}, std::numeric_limits<double>::infinity(), at::kDouble);
  at::Tensor limit = largest.clone();
  for (int i = 0; i < cuts_tried; ++i) {
    const at::Tensor here = largest * float(1 - double(i) / cut_steps);
    const at::Tensor clamped = at::max(at::min(tiles, here), -here);
    const at::Tensor rounded = round_to_nearest(clamped, grid_, alone, kernels_).weight;
    const at::Tensor loss = forms_[static_cast<size_t>(group)](rounded - tiles);
    const at::Tensor better = loss < best;
    best = at::where(better, loss, best);
    limit = at::where(better.unsqueeze(1), here, limit);
  }
  return at::max(at::min(tiles, limit), -limit);
}

TileSolution ClipSearch::operator()(const at::Tensor& tiles) const {
  std::vector<at::Tensor> cut_groups;
  for (int64_t group = 0; group < groups_.count; ++group) {
    const int64_t first = group * groups_.size,
                  count = std::min(groups_.size, tiles.size(1) - first);
    cut_groups.push_back(cut(tiles.narrow(1, first, count).contiguous(), group));
  }
  return round_to_nearest(at::cat(cut_groups, 1), grid_, groups_, kernels_);
}

}  // namespace selfcal
