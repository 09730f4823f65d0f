#include "stages/solve/awq.hpp"

#include <ATen/ATen.h>

#include <algorithm>
#include <limits>

#include "base/error.hpp"
#include "stages/kernels/cpu/tiles.hpp"
#include "stages/solve/quadratic_form.hpp"
#include "stages/solve/row_solver.hpp"

namespace selfcal {
namespace {

constexpr int scale_ratios = 20;
constexpr int64_t largest_row_step = 8, fewest_sampled_rows = 2 * lanes::rows;
constexpr int64_t tried_on_all = 4;

/// Mean over all rows of |w| / (the largest |w| of its group): float32 [columns].
at::Tensor relative_size(const std::vector<at::Tensor>& weights, const MethodSettings& settings) {
  at::Tensor sum;
  int64_t rows = 0;
  for (const at::Tensor& weight : weights) {
    const int64_t columns = weight.size(1),
                  size = settings.group_size == -1 ? columns : settings.group_size;
    const at::Tensor groups =
        weight.to(at::kFloat).abs().view({weight.size(0), columns / size, size});
    const at::Tensor largest = groups.amax(2, /*keepdim=*/true);
    const at::Tensor relative = groups / largest.clamp_min(std::numeric_limits<float>::min());
    const at::Tensor mine = relative.view(weight.sizes()).to(at::kDouble).sum(0);
    sum = sum.defined() ? sum + mine : mine;
    rows += weight.size(0);
  }
  return (sum / double(rows)).to(at::kFloat);
}

/// Without infinite or missing numbers, extremes on both sides of 1.
at::Tensor normalised(at::Tensor scale) {
  scale = at::nan_to_num(scale.clamp_min(1e-4), 1.0, 1.0, 1.0);
  scale = scale / (scale.max() * scale.min()).sqrt();
  return at::where(scale.isfinite().logical_and(scale.gt(0)), scale, at::ones({}, at::kFloat));
}

}  // namespace

at::Tensor candidate_scales(const std::vector<at::Tensor>& weights, const at::Tensor& magnitude,
                            const MethodSettings& settings) {
  std::vector<at::Tensor> scales{at::ones_like(magnitude)};
  // In units of their mean, so that what bounds the scales means the same for any input.
  const at::Tensor sizes = magnitude.to(at::kDouble), mean = sizes.mean();
  const at::Tensor input = mean.item<double>() > 0 ? (sizes / mean).to(at::kFloat) : magnitude;
  const at::Tensor size = settings.duo_scaling ? relative_size(weights, settings) : at::Tensor();
  for (int i = 0; i < scale_ratios; ++i) {
    const double ratio = double(i) / scale_ratios;
    if (!settings.duo_scaling && i == 0) continue;  // all ones again
    at::Tensor scale = input.pow(ratio);
    if (settings.duo_scaling) scale = scale / (size.pow(1 - ratio) + 1e-4);
    scales.push_back(normalised(scale));
  }
  return at::stack(scales);
}

at::Tensor rounded_behind(const at::Tensor& weight, const at::Tensor& scale,
                          const MethodSettings& settings, const kernels::Context& context) {
  const int64_t rows = weight.size(0), columns = weight.size(1);
  const lanes::Grid grid = grid_of(settings, weight.scalar_type());
  const Groups groups = plain_groups(settings, columns);
  const RowSolver solver{settings, lanes::kernels(), context};
  const at::Tensor factors = scale.view({1, columns, 1});
  at::Tensor behind = at::empty_like(weight);
  kernels::for_ranges(
      context, rows, solver.rows_of_a_task(rows), [&](int64_t first, int64_t count) {
        const at::Tensor tiles = load_tiles(weight, first, count) * factors;
        const at::Tensor rounded = round_to_nearest(tiles, grid, groups, solver.kernels).weight;
        store_tiles(rounded / factors, behind, first, count);
      });
  return behind;
}

at::Tensor losses_of_scales(const at::Tensor& weight, const at::Tensor& hessian,
                            const at::Tensor& scales, const MethodSettings& settings,
                            const kernels::Context& context) {
  const int64_t rows = weight.size(0), columns = weight.size(1), candidates = scales.size(0);
  const lanes::Kernels& kernels = lanes::kernels();
  const QuadraticForm form(hessian, kernels, context);
  const lanes::Grid grid = grid_of(settings, weight.scalar_type());
  const Groups groups = plain_groups(settings, columns);
  const RowSolver solver{settings, kernels, context};
  const at::Tensor factors = scales.contiguous();
  at::Tensor losses = at::empty({rows, candidates}, at::kDouble);
  kernels::for_ranges(
      context, rows, solver.rows_of_a_task(rows), [&](int64_t first, int64_t count) {
        const at::Tensor tiles = load_tiles(weight, first, count), errors = at::empty_like(tiles);
        for (int64_t candidate = 0; candidate < candidates; ++candidate) {
          for (int64_t tile = 0; tile < tiles.size(0); ++tile)
            for (int64_t column = 0; column < columns; column += groups.size) {
              const int64_t offset = (tile * columns + column) * lanes::rows;
              kernels.errors_of_scaled(
                  grid, tiles.const_data_ptr<float>() + offset,
                  std::min(groups.size, columns - column),
                  factors.const_data_ptr<float>() + candidate * columns + column,
                  errors.mutable_data_ptr<float>() + offset);
            }
          const at::Tensor loss = form(errors).flatten().narrow(0, 0, count);
          losses.narrow(0, first, count).select(1, candidate).copy_(loss);
        }
      });
  return losses;
}

int64_t row_step(const std::vector<at::Tensor>& weights) {
  int64_t rows = weights.front().size(0);
  for (const auto& weight : weights) rows = std::min(rows, weight.size(0));
  return std::clamp<int64_t>(rows / fewest_sampled_rows, 1, largest_row_step);
}

at::Tensor search_scale(const at::Tensor& candidates, int64_t step, const LossesOf& losses) {
  at::Tensor tried = candidates;
  if (step > 1 && candidates.size(0) > tried_on_all) {
    const at::Tensor order = losses(candidates, step).argsort(/*stable=*/true);
    const at::Tensor best = std::get<0>(order.narrow(0, 0, tried_on_all).sort());
    tried = candidates.index_select(0, best);
  }
  const at::Tensor all = losses(tried, 1);
  const double* loss = all.const_data_ptr<double>();
  return tried[std::min_element(loss, loss + all.numel()) - loss];
}

at::Tensor hessian_of_scaled(const at::Tensor& hessian, const at::Tensor& scale) {
  const at::Tensor inverse = scale.reciprocal();
  return at::outer(inverse, inverse).mul_(hessian);
}

std::vector<std::string> folded_tensors(const BlockWeights& weights, const ScalePair& pair) {
  std::vector<std::string> names{pair.producer + ".weight"};
  if (weights.contains(pair.producer + ".bias")) names.push_back(pair.producer + ".bias");
  for (const auto& consumer : pair.consumers) names.push_back(consumer + ".weight");
  return names;
}

void fold_scale(BlockWeights& weights, const ScalePair& pair, const at::Tensor& scale) {
  const int64_t columns = scale.size(0);
  const auto divide = [&](const std::string& name, double offset) {
    at::Tensor& tensor = weights.at(name);
    if (tensor.size(0) < columns)
      fail(ExitCode::internal, "{}: {} entries, a scale of {}", name, tensor.size(0), columns);
    at::Tensor divided = tensor.to(at::kFloat).clone();
    at::Tensor last = divided.narrow(0, divided.size(0) - columns, columns);
    const at::Tensor divisor = last.dim() == 2 ? scale.unsqueeze(1) : scale;
    last.add_(offset).div_(divisor).sub_(offset);
    tensor = divided.to(tensor.scalar_type());
  };
  divide(pair.producer + ".weight", pair.norm_offset);
  if (weights.contains(pair.producer + ".bias")) divide(pair.producer + ".bias", 0);
  for (const auto& consumer : pair.consumers) {
    at::Tensor& weight = weights.at(consumer + ".weight");
    weight = (weight.to(at::kFloat) * scale).to(weight.scalar_type());
  }
}

}  // namespace selfcal
