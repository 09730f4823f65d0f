#include "stages/solve/method.hpp"

#include <ATen/ATen.h>

#include "base/error.hpp"
#include "stages/solve/factor.hpp"
#include "stages/solve/gptq.hpp"

namespace selfcal {
namespace {

void check_problem(const at::Tensor& weight, const at::Tensor& hessian, const Factor& factor) {
  const int64_t columns = weight.dim() == 2 ? weight.size(1) : -1;
  if (columns < 1 || weight.size(0) < 1 || hessian.sizes() != at::IntArrayRef({columns, columns}) ||
      factor.permutation.sizes() != at::IntArrayRef({columns})) {
    fail(ExitCode::internal,
         "solve: weight [{}], Hessian [{}] and permutation [{}] do not fit together",
         fmt::join(weight.sizes(), ", "), fmt::join(hessian.sizes(), ", "),
         fmt::join(factor.permutation.sizes(), ", "));
  }
}

void note_factor(SolvedRows& solved, const Factor& factor) {
  solved.linear.damping = factor.damping;
  solved.linear.damping_retries = factor.retries;
  solved.linear.dead_columns = factor.dead.sum().item<int64_t>();
}

class Gptq : public Method {
 public:
  Gptq(const MethodSettings& settings, kernels::Context context)
      : settings_(settings), context_(context) {}

  Factor factorise(const at::Tensor& hessian) const override {
    return factorise_inverse(hessian, settings_.damping, settings_.act_order != ActOrder::none,
                             context_);
  }

  SolvedRows solve(const at::Tensor& weight, const at::Tensor& hessian, const Factor& factor,
                   at::ScalarType weight_dtype) const override {
    check_problem(weight, hessian, factor);
    const GptqTiles tiles(settings_, weight_dtype, factor, lanes::kernels(), context_);
    const RowSolver solver{settings_, lanes::kernels(), context_};
    SolvedRows solved = solver(weight, hessian, weight_dtype, tiles.groups(), std::cref(tiles));
    if (tiles.groups().by_position)
      solved.linear.g_idx = group_of_columns(tiles.groups(), factor.permutation);
    note_factor(solved, factor);
    return solved;
  }

 private:
  MethodSettings settings_;
  kernels::Context context_;
};

/// The data-free control: no factor, no order, groups as runs of columns.
class Nearest : public Method {
 public:
  Nearest(const MethodSettings& settings, kernels::Context context)
      : settings_(settings), context_(context) {}

  Factor factorise(const at::Tensor& hessian) const override { return trivial_factor(hessian); }

  SolvedRows solve(const at::Tensor& weight, const at::Tensor& hessian, const Factor& factor,
                   at::ScalarType weight_dtype) const override {
    check_problem(weight, hessian, factor);
    const lanes::Grid grid = grid_of(settings_, weight_dtype);
    const Groups groups = plain_groups(settings_, weight.size(1));
    const RowSolver solver{settings_, lanes::kernels(), context_};
    SolvedRows solved = solver(weight, hessian, weight_dtype, groups, [&](const at::Tensor& tiles) {
      return round_to_nearest(tiles, grid, groups, lanes::kernels());
    });
    note_factor(solved, factor);
    return solved;
  }

 private:
  MethodSettings settings_;
  kernels::Context context_;
};

}  // namespace

std::unique_ptr<Method> make_method(const MethodSettings& settings, kernels::Context context) {
  check_settings(settings);
  switch (settings.name) {
    case MethodName::gptq:
      return std::make_unique<Gptq>(settings, context);
    case MethodName::nearest:
      return std::make_unique<Nearest>(settings, context);
  }
  fail(ExitCode::internal, "unknown method");
}

}  // namespace selfcal
