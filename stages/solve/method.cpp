#include "stages/solve/method.hpp"

#include <ATen/ATen.h>

#include "base/error.hpp"
#include "stages/solve/clip.hpp"
#include "stages/solve/factor.hpp"
#include "stages/solve/gptq.hpp"
#include "stages/solve/pruning.hpp"
#include "stages/solve/threshold_sparsity.hpp"

namespace selfcal {
namespace {

void check_problem(const at::Tensor& weight, const at::Tensor& hessian, const Factor& factor,
                   const MethodSettings& settings) {
  const int64_t columns = weight.dim() == 2 ? weight.size(1) : -1;
  if (columns < 1 || hessian.sizes() != at::IntArrayRef({columns, columns}) ||
      factor.permutation.sizes() != at::IntArrayRef({columns})) {
    fail(ExitCode::internal,
         "solve: weight [{}], Hessian [{}] and permutation [{}] do not fit together",
         fmt::join(weight.sizes(), ", "), fmt::join(hessian.sizes(), ", "),
         fmt::join(factor.permutation.sizes(), ", "));
  }
  const lanes::Pattern& pattern = settings.sparsity.pattern;
  if (pattern.of > 0 && columns % pattern.of != 0)
    fail(ExitCode::data, "pattern {}:{} does not divide the {} columns", pattern.zeros, pattern.of,
         columns);
}

void note_factor(SolvedRows& solved, const Factor& factor) {
  solved.linear.damping = factor.damping;
  solved.linear.damping_retries = factor.retries;
  solved.linear.dead_columns = factor.dead.sum().item<int64_t>();
}

/// Columns in turn, errors fed forward: GPTQ, and SparseGPT where the settings prune.
class ErrorFeedback : public Method {
 public:
  ErrorFeedback(const MethodSettings& settings, kernels::Context context)
      : settings_(settings), context_(context) {}

  Factor factorise(const at::Tensor& hessian) const override {
    const FactorSettings settings = factor_settings(settings_);
    return factorise_inverse(hessian, settings.damping, settings.ordered_run, context_);
  }

  bool rows_meet() const override { return settings_.sparsity.share > 0; }

  SolvedRows solve(const at::Tensor& weight, const at::Tensor& hessian, const Factor& factor,
                   at::ScalarType weight_dtype, const RowTeam& team) const override {
    std::unique_ptr<GptqTiles> tiles;
    team.run([&] {
      check_problem(weight, hessian, factor, settings_);
      tiles =
          std::make_unique<GptqTiles>(settings_, weight_dtype, factor, lanes::kernels(), context_);
    });
    const RowSolver solver{settings_, lanes::kernels(), context_};
    ThresholdSparsity together(*tiles, settings_.sparsity.share, solver);
    if (rows_meet()) together.solve(weight, team);
    SolvedRows solved;
    team.run([&] {
      solved = solver(weight, hessian, weight_dtype, tiles->groups(),
                      [&](const at::Tensor& rows, int64_t first) {
                        return rows_meet() ? together.finish(first) : (*tiles)(rows);
                      });
      if (tiles->groups().by_position)
        solved.linear.g_idx = group_of_columns(tiles->groups(), factor.permutation);
      note_factor(solved, factor);
    });
    return solved;
  }

 private:
  MethodSettings settings_;
  kernels::Context context_;
};

/// No compensation: weights are pruned by their scores where the settings prune, cut off where
/// they ask for it, then rounded.
/// No factor, no order, groups as runs of columns.
class Independent : public Method {
 public:
  Independent(const MethodSettings& settings, kernels::Context context)
      : settings_(settings), context_(context) {}

  Factor factorise(const at::Tensor& hessian) const override { return trivial_factor(hessian); }

  SolvedRows solve(const at::Tensor& weight, const at::Tensor& hessian, const Factor& factor,
                   at::ScalarType weight_dtype, const RowTeam&) const override {
    check_problem(weight, hessian, factor, settings_);
    const lanes::Grid grid = grid_of(settings_, weight_dtype);
    const Groups groups = plain_groups(settings_, weight.size(1));
    at::Tensor norms;  // of the inputs, up to a common factor
    if (settings_.name == MethodName::wanda) norms = hessian.diagonal().sqrt();
    const RowSolver solver{settings_, lanes::kernels(), context_};
    std::optional<ClipSearch> clip;
    if (settings_.name == MethodName::awq && settings_.clip)
      clip.emplace(hessian, groups, grid, solver.kernels, context_);
    SolvedRows solved =
        solver(weight, hessian, weight_dtype, groups, [&](const at::Tensor& tiles, int64_t) {
          if (clip) return (*clip)(tiles);
          if (!settings_.prunes()) return round_to_nearest(tiles, grid, groups, solver.kernels);
          TileSolution solution =
              prune_by_magnitude(tiles, norms, settings_.sparsity, solver.kernels);
          if (!settings_.quantises()) return solution;
          TileSolution rounded = round_to_nearest(solution.weight, grid, groups, solver.kernels);
          rounded.kept = solution.kept;
          return rounded;
        });
    note_factor(solved, factor);
    return solved;
  }

 private:
  MethodSettings settings_;
  kernels::Context context_;
};

}  // namespace

FactorSettings factor_settings(const MethodSettings& settings) {
  if (settings.name != MethodName::gptq && settings.name != MethodName::sparsegpt) return {};
  // The runs of an n:m pattern are runs of the stored columns: they move as a whole.
  const int64_t run = std::max(1, settings.sparsity.pattern.of);
  return {true, settings.damping, settings.act_order == ActOrder::none ? 0 : run};
}

std::unique_ptr<Method> make_method(const MethodSettings& settings, kernels::Context context) {
  check_settings(settings);
  switch (settings.name) {
    case MethodName::gptq:
    case MethodName::sparsegpt:
      return std::make_unique<ErrorFeedback>(settings, context);
    case MethodName::awq:
    case MethodName::wanda:
    case MethodName::magnitude:
    case MethodName::nearest:
      return std::make_unique<Independent>(settings, context);
  }
  fail(ExitCode::internal, "unknown method");
}

}  // namespace selfcal
