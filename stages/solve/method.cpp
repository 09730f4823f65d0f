#include "stages/solve/method.hpp"

#include <ATen/ATen.h>

#include <cmath>

#include "base/error.hpp"
#include "stages/solve/clip.hpp"
#include "stages/solve/device_feedback.hpp"
#include "stages/solve/factor.hpp"
#include "stages/solve/gptq.hpp"
#include "stages/solve/pruning.hpp"
#include "stages/solve/threshold_sparsity.hpp"

namespace selfcal {
namespace {

/// The same factor in the host's memory.
Factor on_host(Factor factor) {
  factor.upper = factor.upper.to(at::kCPU);
  return factor;
}

/// What all methods on the host have in common.
class OnTheHost : public Method {
 public:
  OnTheHost(const MethodSettings& settings, kernels::Context context)
      : settings_(settings), context_(context) {}

  RowControls controls(const at::Tensor& weight, const at::Tensor& hessian,
                       at::ScalarType weight_dtype) const override {
    check_problem(weight, hessian, settings_);
    return solver().controls(weight, hessian.to(at::kCPU), weight_dtype);
  }

 protected:
  const MethodSettings& settings() const { return settings_; }
  const kernels::Context& context() const { return context_; }
  RowSolver solver() const { return {settings_, lanes::kernels(), context_}; }

 private:
  MethodSettings settings_;
  kernels::Context context_;
};

/// Columns in turn, errors fed forward: GPTQ, and SparseGPT where the settings prune.
class ErrorFeedback : public OnTheHost {
 public:
  using OnTheHost::OnTheHost;

  Factor factorise(const at::Tensor& hessian) const override {
    return on_host(factorise_inverse(hessian, settings(), context()));
  }

  bool rows_meet() const override { return settings().sparsity.share > 0; }

  SolvedRows solve(const at::Tensor& weight, const at::Tensor& hessian, const Factor& factor,
                   at::ScalarType weight_dtype, const RowTeam& team) const override {
    std::unique_ptr<GptqTiles> tiles;
    team.run([&] {
      check_problem(weight, hessian, settings());
      tiles = std::make_unique<GptqTiles>(settings(), weight_dtype, on_host(factor),
                                          lanes::kernels(), context());
    });
    const RowSolver by_rows = solver();
    ThresholdSparsity together(*tiles, settings().sparsity.share, by_rows);
    if (rows_meet()) together.solve(weight, team);
    SolvedRows solved;
    team.run([&] {
      solved = by_rows(weight, hessian.to(at::kCPU), weight_dtype, tiles->groups(),
                       [&](const at::Tensor& rows, int64_t first) {
                         return rows_meet() ? together.finish(first) : (*tiles)(rows);
                       });
      if (tiles->groups().by_position)
        solved.linear.g_idx = group_of_columns(tiles->groups(), factor.permutation);
      note_factor(solved, factor);
    });
    return solved;
  }
};

/// Of the inputs, in a unit that brings the largest just below 1, so that the smallest weights
/// count.
at::Tensor relative_norms(const at::Tensor& hessian) {
  const at::Tensor norms = mean_squares(hessian).sqrt();
  const float largest = norms.max().item<float>();
  return largest > 0 ? norms * std::exp2(-1 - std::ilogb(largest)) : norms;
}

/// No compensation: weights are pruned by their scores where the settings prune, cut off where
/// they ask for it, then rounded. No factor, no order, groups as runs of columns.
class Independent : public OnTheHost {
 public:
  using OnTheHost::OnTheHost;

  Factor factorise(const at::Tensor& hessian) const override { return trivial_factor(hessian); }

  SolvedRows solve(const at::Tensor& weight, const at::Tensor& given, const Factor& factor,
                   at::ScalarType weight_dtype, const RowTeam&) const override {
    const at::Tensor hessian = given.to(at::kCPU);
    check_problem(weight, hessian, settings());
    const lanes::Grid grid = grid_of(settings(), weight_dtype);
    const Groups groups = plain_groups(settings(), weight.size(1));
    at::Tensor norms;
    if (settings().name == MethodName::wanda) norms = relative_norms(hessian);
    const RowSolver by_rows = solver();
    std::optional<ClipSearch> clip;
    if (settings().name == MethodName::awq && settings().clip)
      clip.emplace(hessian, groups, grid, by_rows.kernels, context());
    SolvedRows solved =
        by_rows(weight, hessian, weight_dtype, groups, [&](const at::Tensor& tiles, int64_t) {
          if (clip) return (*clip)(tiles);
          if (!settings().prunes()) return round_to_nearest(tiles, grid, groups, by_rows.kernels);
          TileSolution solution =
              prune_by_magnitude(tiles, norms, settings().sparsity, by_rows.kernels);
          if (!settings().quantises()) return solution;
          TileSolution rounded = round_to_nearest(solution.weight, grid, groups, by_rows.kernels);
          rounded.kept = solution.kept;
          return rounded;
        });
    note_factor(solved, factor);
    return solved;
  }
};

}  // namespace

FactorSettings factor_settings(const MethodSettings& settings) {
  if (!compensates(settings.name)) return {};
  // The runs of an n:m pattern are runs of the stored columns: they move as a whole.
  const int64_t run = std::max(1, settings.sparsity.pattern.of);
  return {true, settings.damping, settings.act_order == ActOrder::none ? 0 : run};
}

std::unique_ptr<Method> make_method(const MethodSettings& settings, kernels::Context context) {
  check_settings(settings);
  switch (settings.name) {
    case MethodName::gptq:
    case MethodName::sparsegpt:
      if (context.device.solver != nullptr && !reason_for_host(settings))
        return make_device_feedback(settings, context);
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
