#include "stages/solve/row_solver.hpp"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>

#include "base/error.hpp"
#include "stages/kernels/cpu/tiles.hpp"
#include "stages/solve/pruning.hpp"
#include "stages/solve/quadratic_form.hpp"
#include "storage/packing.hpp"

namespace selfcal {
namespace {

void store_forms(const at::Tensor& forms, at::Tensor& rows, int64_t first, int64_t count) {
  const std::span mine(forms.const_data_ptr<double>(), size_t(count));
  check_forms(mine);
  std::ranges::copy(mine, rows.mutable_data_ptr<double>() + first);
}

/// Whole numbers of the tiles' rows as uint8 [count, columns].
at::Tensor whole_rows(const at::Tensor& tiles, int64_t count) {
  at::Tensor numbers = at::empty({count, tiles.size(1)}, at::kByte);
  store_tiles(tiles, numbers, 0, count);
  return numbers;
}

void store(const TileSolution& solution, CompressedLinear& linear, int64_t first, int64_t count) {
  store_tiles(solution.weight, linear.weight, first, count);
  if (linear.mask.defined())
    linear.mask.narrow(0, first, count).copy_(pack_mask(whole_rows(solution.kept, count)));
  if (!linear.codes.defined()) return;
  check_scales(solution.scale, linear.scale.scalar_type());
  linear.codes.narrow(0, first, count)
      .copy_(pack_codes(whole_rows(solution.codes, count), linear.bits));
  store_tiles(solution.scale, linear.scale, first, count);
  store_tiles(solution.zero, linear.zero, first, count);
}

/// What a method without data comes to: pruned by magnitude, rounded to the nearest code.
at::Tensor data_free(const at::Tensor& tiles, const MethodSettings& settings,
                     const lanes::Grid& grid, const Groups& groups, const lanes::Kernels& kernels) {
  at::Tensor weight = tiles;
  if (settings.prunes()) weight = prune_by_magnitude(tiles, {}, settings.sparsity, kernels).weight;
  return settings.quantises() ? round_to_nearest(weight, grid, groups, kernels).weight : weight;
}

}  // namespace

void check_problem(const at::Tensor& weight, const at::Tensor& hessian,
                   const MethodSettings& settings) {
  const int64_t columns = weight.dim() == 2 ? weight.size(1) : -1;
  const bool fits = hessian.sizes() == at::IntArrayRef({columns, columns}) ||
                    (hessian.sizes() == at::IntArrayRef({columns}) && !needs_products(settings));
  if (columns < 1 || !fits)
    fail(ExitCode::internal, "solve: weight [{}] and Hessian [{}] do not fit together",
         fmt::join(weight.sizes(), ", "), fmt::join(hessian.sizes(), ", "));
  const lanes::Pattern& pattern = settings.sparsity.pattern;
  if (pattern.of > 0 && columns % pattern.of != 0)
    fail(ExitCode::data, "pattern {}:{} does not divide the {} columns", pattern.zeros, pattern.of,
         columns);
}

void check_scales(const at::Tensor& scale, at::ScalarType scale_dtype) {
  if (!scale.isfinite().all().item<bool>())
    fail(ExitCode::data, "weight too large: the scale of a group overflows {}",
         toString(scale_dtype));
}

void check_forms(std::span<const double> forms) {
  if (std::ranges::any_of(forms, [](double form) { return !std::isfinite(form); }))
    fail(ExitCode::data, "weight and Hessian are too large: the error of a row overflows float32");
}

void note_factor(SolvedRows& solved, const Factor& factor) {
  solved.linear.damping = factor.damping;
  solved.linear.damping_retries = factor.retries;
  solved.linear.dead_columns = factor.dead.sum().item<int64_t>();
}

SolvedRows empty_rows(int64_t rows, int64_t columns, const MethodSettings& settings,
                      const Groups& groups, at::ScalarType weight_dtype) {
  SolvedRows solved;
  solved.linear.weight = at::empty({rows, columns}, weight_dtype);
  solved.error = at::empty({rows}, at::kDouble);
  if (settings.prunes()) solved.linear.mask = at::empty({rows, (columns + 7) / 8}, at::kByte);
  if (!settings.quantises()) return solved;
  solved.linear.codes = at::empty({rows, packed_row_bytes(columns, settings.bits)}, at::kByte);
  solved.linear.scale = at::empty({rows, groups.count}, settings.scale_dtype);
  solved.linear.zero = at::empty({rows, groups.count}, at::kByte);
  solved.linear.bits = settings.bits;
  solved.linear.group_size = groups.size;
  solved.linear.symmetric = settings.symmetric;
  return solved;
}

/// More tiles at a time read the factor from memory less often; among up to 4 those that end
/// soonest, if all threads are alike. A row's result does not depend on it.
int64_t RowSolver::rows_of_a_task(int64_t rows) const {
  const int64_t threads = context.threads ? context.threads->size() : 1;
  const auto tiles_until_the_end = [&](int64_t together) {
    return kernels::ceil_divide(kernels::ceil_divide(tiles_of(rows), together), threads) * together;
  };
  int64_t best = 4;
  for (int64_t together = 3; together >= 1; --together)
    if (tiles_until_the_end(together) < tiles_until_the_end(best)) best = together;
  return best * lanes::rows;
}

TileSolution round_to_nearest(const at::Tensor& tiles, const lanes::Grid& grid,
                              const Groups& groups, const lanes::Kernels& kernels) {
  const int64_t columns = tiles.size(1), tile_size = columns * lanes::rows,
                scale_size = groups.count * lanes::rows;
  TileSolution solution{tiles.clone(),
                        at::empty_like(tiles),
                        at::empty({tiles.size(0), groups.count, lanes::rows}, at::kFloat),
                        at::empty({tiles.size(0), groups.count, lanes::rows}, at::kFloat),
                        {}};
  for (int64_t i = 0; i < tiles.size(0); ++i) {
    float* weight = solution.weight.mutable_data_ptr<float>() + i * tile_size;
    float* scale = solution.scale.mutable_data_ptr<float>() + i * scale_size;
    float* zero = solution.zero.mutable_data_ptr<float>() + i * scale_size;
    for (int64_t group = 0; group < groups.count; ++group) {
      const int64_t first = group * groups.size, count = std::min(groups.size, columns - first);
      kernels.find_scale(grid, weight + first * lanes::rows, count, scale + group * lanes::rows,
                         zero + group * lanes::rows);
    }
    kernels.round_columns(grid, weight, columns, groups.of_position.data(), scale, zero,
                          solution.codes.mutable_data_ptr<float>() + i * tile_size);
  }
  return solution;
}

RowControls RowSolver::controls(const at::Tensor& weight, const at::Tensor& hessian,
                                at::ScalarType weight_dtype) const {
  const int64_t rows = weight.size(0);
  const lanes::Grid grid = grid_of_control(settings, weight_dtype);
  const Groups groups = plain_groups(settings, weight.size(1));
  const QuadraticForm form(hessian, kernels, context);
  RowControls controls{at::empty({rows}, at::kDouble), at::empty({rows}, at::kDouble)};
  kernels::for_ranges(context, rows, rows_of_a_task(rows), [&](int64_t first, int64_t count) {
    const at::Tensor tiles = load_tiles(weight, first, count);
    store_forms(form(tiles), controls.reference, first, count);
    const at::Tensor control = data_free(tiles, settings, grid, groups, kernels);
    store_forms(form(tiles - control), controls.nearest_error, first, count);
  });
  return controls;
}

SolvedRows RowSolver::operator()(const at::Tensor& weight, const at::Tensor& hessian,
                                 at::ScalarType weight_dtype, const Groups& groups,
                                 const SolveTiles& solve) const {
  const int64_t rows = weight.size(0), columns = weight.size(1);
  const QuadraticForm form(hessian, kernels, context);
  SolvedRows solved = empty_rows(rows, columns, settings, groups, weight_dtype);
  kernels::for_ranges(context, rows, rows_of_a_task(rows), [&](int64_t first, int64_t count) {
    const at::Tensor tiles = load_tiles(weight, first, count);
    const TileSolution solution = solve(tiles, first);
    store(solution, solved.linear, first, count);
    store_forms(form(tiles - solution.weight), solved.error, first, count);
  });
  return solved;
}

}  // namespace selfcal
