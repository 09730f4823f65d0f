#include "stages/solve/short_panels.hpp"

#include <gtest/gtest.h>

#include "stages/solve/gptq.hpp"
#include "stages/solve/quadratic_form.hpp"
#include "tests/stages/solve_support.hpp"

namespace selfcal {
namespace {

using namespace testing_support;

template <class Body>
void on_every_instruction_set(const Body& body) {
  const auto sets = lanes::available_kernels();
  for (int64_t i = 0; i < sets.count; ++i) {
    SCOPED_TRACE(sets.first[i]->instruction_set);
    body(*sets.first[i]);
  }
}

/// Two tiles times rectangle [row, row + depth) x [column, column + columns) of a matrix.
struct Product {
  at::Tensor matrix, sizes, tiles;  // tiles [2, depth, 32]
  Rectangle rectangle;

  at::Tensor by(const lanes::Kernels& kernels) const {
    Threads threads(2);
    const auto [row, depth, column, columns] = rectangle;
    const ShortPanels panels(matrix, sizes, {{0, 1, 0, 3}, rectangle}, kernels, threads.context());
    at::Tensor result = at::zeros({2, columns, lanes::rows}, at::kFloat);
    panels.subtract(1, 2, tiles.const_data_ptr<float>(), tiles.stride(0),
                    result.mutable_data_ptr<float>(), result.stride(0));
    return result.neg();
  }
  at::Tensor part() const {
    return matrix.narrow(0, rectangle.row, rectangle.depth)
        .narrow(1, rectangle.column, rectangle.columns)
        .to(at::kDouble);
  }
  at::Tensor expected() const { return at::matmul(part().t(), tiles.to(at::kDouble)); }
};

Product random_product(int64_t depth, int64_t columns) {
  at::manual_seed(int(depth + columns));
  const int64_t all = depth + columns + 7;
  return {at::randn({all, all}),
          at::ones({all}),
          at::randn({2, depth, lanes::rows}),
          {2, depth, 5, columns}};
}

/// The largest error in units of the norms of what was multiplied.
double error_of(const Product& product, const at::Tensor& found) {
  const at::Tensor sizes = product.sizes.narrow(0, product.rectangle.row, product.rectangle.depth)
                               .to(at::kDouble)
                               .unsqueeze(1);
  const at::Tensor norms = (product.part() / sizes).norm(2, 0).unsqueeze(1) *
                           (product.tiles.to(at::kDouble) * sizes).norm(2, 1, true);
  return ((found - product.expected()).abs() / norms).max().item<double>();
}

TEST(ShortPanels, AgreeWithFloat64) {
  on_every_instruction_set([](const lanes::Kernels& kernels) {
    for (const int64_t depth : {1, 2, 31, 128, 300})
      for (const int64_t columns : {1, 6, 16, 47, 130}) {
        const Product product = random_product(depth, columns);
        EXPECT_LT(error_of(product, product.by(kernels)), 5e-5) << depth << " x " << columns;
      }
  });
}

TEST(ShortPanels, TakeRowsOfKnownSizesHoweverUnlike) {
  Product product = random_product(128, 64);
  product.sizes = at::logspace(-6, 6, product.matrix.size(0));
  product.matrix *= product.sizes.unsqueeze(1);
  product.tiles /= product.sizes.narrow(0, product.rectangle.row, 128).unsqueeze(1);
  on_every_instruction_set([&](const lanes::Kernels& kernels) {
    EXPECT_LT(error_of(product, product.by(kernels)), 4e-5);
  });
}

TEST(ShortPanels, ZerosTinyAndEqualNumbers) {
  on_every_instruction_set([](const lanes::Kernels& kernels) {
    Product product = random_product(20, 20);
    product.tiles.select(2, 3).zero_();
    product.matrix.select(1, 9).zero_();
    product.tiles.select(2, 4).mul_(1e-36);
    product.matrix.select(1, 10).mul_(1e-36);
    const at::Tensor found = product.by(kernels);
    EXPECT_EQ(found.select(2, 3).abs().max().item<float>(), 0);
    EXPECT_EQ(found.select(1, 9 - 5).abs().max().item<float>(), 0);
    EXPECT_GT(found.select(2, 4).abs().min().item<float>(), -1);
    EXPECT_TRUE(found.isfinite().all().item<bool>());
    // The largest sum that a norm allows: 300 equal numbers on both sides, each to 1 in 2 x 2655.
    product = random_product(300, 3);
    product.tiles.fill_(-3);
    product.matrix.fill_(2);
    EXPECT_TRUE(at::allclose(product.by(kernels).to(at::kDouble), product.expected(), 4e-4));
  });
}

TEST(ShortPanels, WhatIsNotFiniteIsSeen) {
  on_every_instruction_set([](const lanes::Kernels& kernels) {
    for (const float bad : {INFINITY, -INFINITY, NAN}) {
      Product product = random_product(20, 20);
      product.tiles[0][7][3] = bad;
      EXPECT_TRUE(product.by(kernels)[0].select(1, 3).isnan().all().item<bool>());
      EXPECT_TRUE(product.by(kernels)[1].isfinite().all().item<bool>());
    }
  });
}

TEST(ShortPanels, GptqOfBfloat16IsAsGoodAsThatOfFloat32) {
  const Problem problem = random_problem(3, 96, 512);
  Threads threads(2);
  for (const bool ordered : {false, true}) {
    MethodSettings settings;
    settings.group_size = 64;
    settings.act_order = ordered ? ActOrder::static_order : ActOrder::none;
    const auto of = [&](at::ScalarType dtype) { return solve(problem, settings, 2, dtype); };
    const MeasuredRows whole = of(at::kBFloat16), exact = of(at::kHalf);
    EXPECT_NEAR(whole.error.sum().item<double>() / exact.error.sum().item<double>(), 1, 5e-3);
  }
}

TEST(QuadraticForm, AgreesWithFloat64) {
  Threads threads(2);
  on_every_instruction_set([&](const lanes::Kernels& kernels) {
    for (const int64_t columns : {1, 5, 128, 200, 300}) {
      Problem problem = random_problem(4, 70, columns);
      // One input a thousand times as large as the others.
      problem.hessian.select(0, columns / 2).mul_(1e3);
      problem.hessian.select(1, columns / 2).mul_(1e3);
      const at::Tensor w = problem.weight.to(at::kDouble);
      const at::Tensor expected = (w.mm(problem.hessian.to(at::kDouble)) * w).sum(1);
      const QuadraticForm form(problem.hessian, kernels, threads.context());
      const at::Tensor found = form(load_tiles(problem.weight, 0, 70)).view(-1).narrow(0, 0, 70);
      EXPECT_LT(((found - expected).abs() / expected).max().item<double>(), 1e-4) << columns;
    }
  });
}

}  // namespace
}  // namespace selfcal
