#include "tests/stages/solve_support.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <numeric>
#include <random>
#include <vector>

namespace selfcal::testing_support {
namespace {

at::Tensor normal(std::mt19937& engine, int64_t rows, int64_t columns) {
  std::normal_distribution<float> distribution;
  at::Tensor x = at::empty({rows, columns}, at::kFloat);
  for (int64_t i = 0; i < x.numel(); ++i) x.data_ptr<float>()[i] = distribution(engine);
  return x;
}

struct Scale {
  double scale, zero;
};

/// Of entries of one row, in float32 as published.
Scale find_scale(const std::vector<float>& x, const MethodSettings& settings) {
  const float largest = float((1 << settings.bits) - 1);
  float low = 0, high = 0;
  for (float v : x) low = std::min(low, v), high = std::max(high, v);
  if (settings.symmetric) {
    high = std::max(high, std::abs(low));
    if (low < 0) low = -high;
  }
  if (low == 0 && high == 0) low = -1, high = 1;
  const auto of_share = [&](float share) {
    const float scale = (share * high - share * low) / largest;
    const float zero =
        settings.symmetric ? (largest + 1) / 2 : std::nearbyint(-share * low / scale);
    return Scale{scale, zero};
  };
  Scale best = of_share(1);
  if (settings.mse) {
    double least = INFINITY;
    for (int i = 0; i < 80; ++i) {
      const Scale tried = of_share(float(1 - i / 100.0));
      double sum = 0;
      for (float v : x) {
        const double code = std::clamp<double>(std::nearbyint(v / float(tried.scale)) + tried.zero,
                                               0.0, double(largest));
        sum += std::pow(std::abs((code - tried.zero) * tried.scale - v), 2.4);
      }
      if (sum < least) least = sum, best = tried;
    }
  }
  return best;
}

}  // namespace

Problem random_problem(int seed, int64_t rows, int64_t columns) {
  std::mt19937 engine(seed);
  at::Tensor mixing =
      normal(engine, columns, columns) / std::sqrt(double(columns)) + at::eye(columns);
  at::Tensor x =
      normal(engine, 2 * columns, columns).mm(mixing) * at::exp2(normal(engine, 1, columns));
  at::Tensor hessian = x.t().mm(x) / double(x.size(0));
  return {normal(engine, rows, columns) * 0.05, ((hessian + hessian.t()) / 2).contiguous()};
}

at::Tensor reference_codes(const Problem& problem, const MethodSettings& settings) {
  const int64_t rows = problem.weight.size(0), columns = problem.weight.size(1);
  const int64_t size = settings.group_size == -1 ? columns : settings.group_size;
  at::Tensor h = problem.hessian.to(at::kDouble).clone(), order = at::arange(columns, at::kLong);
  if (settings.act_order != ActOrder::none)
    order = std::get<1>(at::sort(h.diag(), /*stable=*/true, 0, true));
  h = h.index_select(0, order).index_select(1, order);
  h.diagonal().add_(settings.damping * h.diag().mean().item<double>());
  const at::Tensor u = at::linalg_cholesky(at::linalg_inv(h), /*upper=*/true).contiguous();
  const double* upper = u.const_data_ptr<double>();
  const int64_t* column = order.const_data_ptr<int64_t>();
  const bool dynamic = settings.static_groups == StaticGroups::no &&
                       settings.act_order != ActOrder::static_order && settings.group_size != -1;
  const bool by_position =
      settings.act_order == ActOrder::dynamic_order && settings.group_size != -1;
  at::Tensor codes = at::empty({rows, columns}, at::kByte);
  const float* original = problem.weight.const_data_ptr<float>();
  for (int64_t row = 0; row < rows; ++row) {
    std::vector<double> w(columns);
    for (int64_t j = 0; j < columns; ++j) w[j] = original[row * columns + column[j]];
    std::vector<double> lagging = w;  // without the updates of the running block
    const auto scale_of = [&](const std::vector<double>& from, int64_t first) {
      std::vector<float> x;
      for (int64_t j = first; j < std::min(first + size, columns); ++j) x.push_back(float(from[j]));
      return find_scale(x, settings);
    };
    const std::vector<double> dense(original + row * columns, original + (row + 1) * columns);
    Scale scale{};
    for (int64_t j = 0; j < columns; ++j) {
      if (j % settings.block_size == 0) lagging = w;
      if (dynamic) {
        const bool published = settings.group_parameters == GroupParameters::published;
        if (j % size == 0) scale = scale_of(published ? lagging : w, j);
      } else {
        scale = scale_of(by_position ? w : dense, (by_position ? j : column[j]) / size * size);
      }
      // In float32 as published: a group's lowest weight lies half-way between two symmetric codes.
      const double steps = std::nearbyint(float(w[j]) / float(scale.scale));
      const double code = std::clamp(steps + scale.zero, 0.0, double((1 << settings.bits) - 1));
      codes.data_ptr<uint8_t>()[row * columns + column[j]] = uint8_t(code);
      const double error = (w[j] - (code - scale.zero) * scale.scale) / upper[j * columns + j];
      for (int64_t k = j + 1; k < columns; ++k) w[k] -= error * upper[j * columns + k];
    }
  }
  return codes;
}

MeasuredRows solve(const Problem& problem, const Method& method, at::ScalarType weight_dtype) {
  return {method.solve(problem.weight, problem.hessian, method.factorise(problem.hessian),
                       weight_dtype),
          method.controls(problem.weight, problem.hessian, weight_dtype)};
}

MeasuredRows solve(const Problem& problem, const MethodSettings& settings, int threads,
                   at::ScalarType weight_dtype) {
  Threads pool(threads);
  return solve(problem, *make_method(settings, pool.context()), weight_dtype);
}

double relative_error(const Problem& problem, const at::Tensor& solved) {
  const at::Tensor h = problem.hessian.to(at::kDouble), w = problem.weight.to(at::kDouble),
                   e = w - solved.to(at::kDouble);
  return ((e.mm(h) * e).sum() / (w.mm(h) * w).sum()).item<double>();
}

void expect_failure(ExitCode code, const std::string& text, const std::function<void()>& action) {
  try {
    action();
    ADD_FAILURE() << "expected a failure: " << text;
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), code) << error.what();
    EXPECT_NE(std::string(error.what()).find(text), std::string::npos) << error.what();
  }
}

}  // namespace selfcal::testing_support
