#include "stages/solve/clip.hpp"

#include <ATen/ATen.h>

#include <algorithm>
#include <limits>

namespace selfcal {
namespace {

constexpr int cut_steps = 20, cuts_tried = 10;  // shares 1 - i / cut_steps

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
  const int64_t columns = tiles.size(1), lanes_of_all = tiles.size(0) * lanes::rows;
  const at::Tensor largest = tiles.abs().amax(1, /*keepdim=*/true);  // [tiles, 1, 32]
  at::Tensor here = at::empty_like(largest), best_limits = largest.clone(),
             errors = at::empty_like(tiles);
  const float* most = largest.const_data_ptr<float>();
  float *limits = here.mutable_data_ptr<float>(), *kept = best_limits.mutable_data_ptr<float>();
  std::vector<double> best(static_cast<size_t>(lanes_of_all),
                           std::numeric_limits<double>::infinity());
  for (int i = 0; i < cuts_tried; ++i) {
    const float share = float(1 - double(i) / cut_steps);
    for (int64_t lane = 0; lane < lanes_of_all; ++lane) limits[lane] = most[lane] * share;
    for (int64_t tile = 0; tile < tiles.size(0); ++tile) {
      const int64_t offset = tile * columns * lanes::rows;
      kernels_.errors_of_cut(grid_, tiles.const_data_ptr<float>() + offset, columns,
                             limits + tile * lanes::rows,
                             errors.mutable_data_ptr<float>() + offset);
    }
    const at::Tensor losses = forms_[static_cast<size_t>(group)](errors);
    const double* loss = losses.const_data_ptr<double>();
    for (int64_t lane = 0; lane < lanes_of_all; ++lane)
      if (loss[lane] < best[static_cast<size_t>(lane)]) {
        best[static_cast<size_t>(lane)] = loss[lane];
        kept[lane] = limits[lane];
      }
  }
  return at::max(at::min(tiles, best_limits), -best_limits);
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
