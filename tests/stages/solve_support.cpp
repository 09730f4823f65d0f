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

/// Of entries of one row, in float32 as published.
GroupScale find_scale(const std::vector<float>& x, const MethodSettings& settings) {
  const std::vector<GroupScale> tried = tried_scales(x, settings);
  GroupScale best = tried.front();
  if (settings.mse == AutoFlag::yes) {
    double least = INFINITY;
    for (const GroupScale& scale : tried) {
      const double sum = distortion(x, scale, settings.bits);
      if (sum < least) least = sum, best = scale;
    }
  }
  return best;
}

}  // namespace

std::vector<GroupScale> tried_scales(const std::vector<float>& x, const MethodSettings& settings) {
  const float largest = float((1 << settings.bits) - 1);
  float low = 0, high = 0;
  for (float v : x) low = std::min(low, v), high = std::max(high, v);
  if (settings.symmetric) {
    high = std::max(high, std::abs(low));
    if (low < 0) low = -high;
  }
  if (low == 0 && high == 0) low = -1, high = 1;
  std::vector<GroupScale> scales;
  for (int i = 0; i < 80; ++i) {
    const float share = float(1 - i / 100.0);
    const float scale = (share * high - share * low) / largest;
    const float zero =
        settings.symmetric ? (largest + 1) / 2 : std::nearbyint(-share * low / scale);
    scales.push_back({scale, zero});
  }
  return scales;
}

double distortion(const std::vector<float>& x, const GroupScale& scale, int bits) {
  double sum = 0;
  for (float v : x) {
    const double code = std::clamp<double>(std::nearbyint(v / float(scale.scale)) + scale.zero, 0.0,
                                           double((1 << bits) - 1));
    sum += std::pow(std::abs((code - scale.zero) * scale.scale - v), 2.4);
  }
  return sum;
}

Problem random_problem(int seed, int64_t rows, int64_t columns) {
  std::mt19937 engine(seed);
  at::Tensor mixing =
      normal(engine, columns, columns) / std::sqrt(double(columns)) + at::eye(columns);
  at::Tensor x =
      normal(engine, 2 * columns, columns).mm(mixing) * at::exp2(normal(engine, 1, columns));
  at::Tensor hessian = x.t().mm(x) / double(x.size(0));
  return {normal(engine, rows, columns) * 0.05, ((hessian + hessian.t()) / 2).contiguous()};
}

namespace {

/// Positions -> columns: as stored, or runs of an n:m pattern by falling sum of their diagonal.
at::Tensor order_of(const Problem& problem, const MethodSettings& settings) {
  const int64_t columns = problem.weight.size(1), run = std::max(1, settings.sparsity.pattern.of);
  const at::Tensor stored = at::arange(columns, at::kLong).view({-1, run});
  if (settings.act_order == ActOrder::none) return stored.flatten();
  const at::Tensor sums = problem.hessian.diag().to(at::kDouble).view({-1, run}).sum(1);
  const at::Tensor runs = std::get<1>(at::sort(sums, /*stable=*/true, 0, /*descending=*/true));
  return stored.index_select(0, runs).flatten();
}

using Matrix = std::vector<std::vector<double>>;

Matrix rows_of(const at::Tensor& matrix) {
  Matrix rows(matrix.size(0), std::vector<double>(matrix.size(1)));
  for (int64_t row = 0; row < matrix.size(0); ++row)
    for (int64_t j = 0; j < matrix.size(1); ++j)
      rows[row][j] = matrix.const_data_ptr<float>()[row * matrix.size(1) + j];
  return rows;
}

/// Which entries of the columns [first, last) go, by what that costs: a share of all, or, of each
/// row, so many.
void choose_kept(const Matrix& w, const at::Tensor& pivots, int64_t first, int64_t last,
                 const Sparsity& sparsity, at::Tensor& kept) {
  at::Tensor cost = at::empty({int64_t(w.size()), last - first}, at::kDouble);
  for (size_t row = 0; row < w.size(); ++row)
    for (int64_t j = first; j < last; ++j)
      cost.data_ptr<double>()[row * (last - first) + j - first] =
          std::pow(w[row][j] / pivots[j].item<double>(), 2);
  at::Tensor stays = kept.narrow(1, first, last - first);
  if (sparsity.pattern.of > 0) {
    stays.fill_(true);
    stays.scatter_(1, std::get<1>(cost.topk(sparsity.pattern.zeros, 1, /*largest=*/false)), false);
  } else {
    const at::Tensor sorted = std::get<0>(cost.flatten().sort());
    stays.copy_(cost > sorted[int64_t(double(cost.numel()) * sparsity.share)]);
  }
}

}  // namespace

ReferenceRows reference(const Problem& problem, const MethodSettings& settings) {
  const int64_t rows = problem.weight.size(0), columns = problem.weight.size(1);
  const int64_t size = settings.group_size == -1 ? columns : settings.group_size;
  const at::Tensor order = order_of(problem, settings);
  at::Tensor h =
      problem.hessian.to(at::kDouble).index_select(0, order).index_select(1, order).clone();
  h.diagonal().add_(settings.damping * h.diag().mean().item<double>());
  const at::Tensor u = at::linalg_cholesky(at::linalg_inv(h), /*upper=*/true).contiguous();
  const double* upper = u.const_data_ptr<double>();
  const int64_t* column = order.const_data_ptr<int64_t>();
  const bool dynamic = settings.static_groups == AutoFlag::no &&
                       settings.act_order != ActOrder::static_order && settings.group_size != -1;
  const bool by_position =
      settings.act_order == ActOrder::dynamic_order && settings.group_size != -1;
  const lanes::Pattern& pattern = settings.sparsity.pattern;
  Matrix w = rows_of(problem.weight.index_select(1, order).contiguous());
  Matrix lagging;  // without the updates of the running block
  // What static scales are found from: all weights, or those that pruning alone would leave.
  MethodSettings alone = settings;
  alone.bits = unquantised_bits;
  const Matrix ranged =
      rows_of(prunes_before_scales(settings) ? reference(problem, alone).weight.to(at::kFloat)
                                             : problem.weight);
  at::Tensor kept = at::ones({rows, columns}, at::kBool), codes = at::zeros({rows, columns}),
             stored = at::empty({rows, columns}, at::kDouble);
  std::vector<GroupScale> scales(rows);
  const auto scale_of = [&](const std::vector<double>& from, int64_t first) {
    std::vector<float> x;
    for (int64_t j = first; j < std::min(first + size, columns); ++j) x.push_back(float(from[j]));
    return find_scale(x, settings);
  };
  for (int64_t j = 0; j < columns; ++j) {
    if (j % settings.block_size == 0) {
      lagging = w;
      if (settings.sparsity.share > 0)
        choose_kept(w, u.diag(), j, std::min(j + settings.block_size, columns), settings.sparsity,
                    kept);
    }
    for (int64_t row = 0; row < rows && settings.quantises(); ++row) {
      const bool published = settings.group_parameters == GroupParameters::published;
      if (!dynamic)
        scales[row] = scale_of(by_position ? w[row] : ranged[row],
                               (by_position ? j : column[j]) / size * size);
      else if (j % size == 0)
        scales[row] = scale_of(published ? lagging[row] : w[row], j);
    }
    if (pattern.of > 0 && j % pattern.of == 0)
      choose_kept(w, u.diag(), j, j + pattern.of, settings.sparsity, kept);
    for (int64_t row = 0; row < rows; ++row) {
      double& weight = w[row][j];
      const int64_t at = row * columns + column[j];
      double rounded = kept.const_data_ptr<bool>()[row * columns + j] ? weight : 0;
      if (settings.quantises()) {
        // In float32 as published: a group's lowest weight lies half-way between two symmetric
        // codes.
        const GroupScale scale = scales[row];
        const double steps = std::nearbyint(float(rounded) / float(scale.scale));
        const double code = std::clamp(steps + scale.zero, 0.0, double((1 << settings.bits) - 1));
        codes.data_ptr<float>()[at] = float(code);
        rounded = (code - scale.zero) * scale.scale;
      }
      const double error = (weight - rounded) / upper[j * columns + j];
      for (int64_t k = j + 1; k < columns; ++k) w[row][k] -= error * upper[j * columns + k];
      stored.data_ptr<double>()[at] = rounded;
    }
  }
  return {stored, codes.to(at::kByte), kept.index_select(1, order.argsort())};
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
