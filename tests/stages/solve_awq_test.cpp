// AWQ's parts: candidates, losses, folding, the clip search, and mean magnitudes.
#include <gtest/gtest.h>

#include <cmath>

#include "stages/calibrate/hessian.hpp"
#include "stages/calibrate/magnitudes.hpp"
#include "stages/solve/awq.hpp"
#include "tests/stages/solve_support.hpp"

namespace selfcal {
namespace {

using namespace testing_support;

MethodSettings awq(int bits = 3, bool clip = false) {
  MethodSettings settings;
  settings.name = MethodName::awq;
  settings.bits = bits;
  settings.group_size = 16;
  settings.symmetric = false;
  settings.act_order = ActOrder::none;
  settings.clip = clip;
  return settings;
}

/// Inputs a few columns of which are much larger than the others.
Problem uneven_problem(int seed, int64_t rows, int64_t columns) {
  Problem problem = random_problem(seed, rows, columns);
  at::Tensor size = at::ones({columns});
  for (int64_t j = 0; j < columns; j += 13) size[j] = 30;
  problem.hessian = (problem.hessian * size.unsqueeze(1) * size).contiguous();
  return problem;
}

TEST(Awq, FirstCandidateIsNoScaleAndItsLossIsThatOfNearest) {
  const Problem problem = uneven_problem(1, 70, 64);
  const at::Tensor magnitude = problem.hessian.diag().sqrt();
  MethodSettings settings = awq();
  const at::Tensor scales = candidate_scales({problem.weight}, magnitude, settings);
  EXPECT_EQ(scales.size(0), 21);
  EXPECT_TRUE(scales[0].eq(1).all().item<bool>());
  EXPECT_TRUE(scales.isfinite().logical_and(scales.gt(0)).all().item<bool>());
  Threads threads(2);
  const at::Tensor losses =
      losses_of_scales(problem.weight, problem.hessian, scales, settings, threads.context());
  settings.name = MethodName::nearest;
  const SolvedRows nearest = solve(problem, settings);
  EXPECT_TRUE(same_bits(losses.select(1, 0).contiguous(), nearest.error));
  EXPECT_LT(losses.sum(0).min().item<double>(), 0.7 * nearest.error.sum().item<double>());
  settings.duo_scaling = false;
  EXPECT_EQ(candidate_scales({problem.weight}, magnitude, settings).size(0), 20);
}

TEST(Awq, LossesAreThoseOfTheFoldedWeights) {
  const Problem problem = uneven_problem(2, 40, 64);
  Threads threads(1);
  MethodSettings settings = awq();
  const at::Tensor scales =
      candidate_scales({problem.weight}, problem.hessian.diag().sqrt(), settings);
  const at::Tensor losses =
      losses_of_scales(problem.weight, problem.hessian, scales, settings, threads.context());
  const at::Tensor s = scales[7];
  const Problem folded{problem.weight * s, (problem.hessian / s.unsqueeze(1) / s).contiguous()};
  const SolvedRows solved = solve(folded, settings);
  EXPECT_NEAR(losses.select(1, 7).sum().item<double>() / solved.error.sum().item<double>(), 1,
              1e-3);
}

TEST(Awq, RowsAreIndependentOfEachOtherAndOfThreads) {
  const Problem problem = uneven_problem(3, 150, 64);
  const at::Tensor scales =
      candidate_scales({problem.weight}, problem.hessian.diag().sqrt(), awq());
  Threads one(1), four(4);
  const at::Tensor whole =
      losses_of_scales(problem.weight, problem.hessian, scales, awq(), one.context());
  for (const int64_t first : {0, 37, 149}) {
    const at::Tensor rows = problem.weight.narrow(0, first, 150 - first);
    EXPECT_TRUE(same_bits(losses_of_scales(rows, problem.hessian, scales, awq(), four.context()),
                          whole.narrow(0, first, 150 - first).contiguous()));
  }
}

TEST(Awq, DeadAndHugeInputsGiveUsableScales) {
  const Problem problem = random_problem(4, 20, 64);
  at::Tensor magnitude = at::ones({64});
  magnitude[0] = 0;
  magnitude[1] = 1e30;
  magnitude[2] = 1e-38;
  for (const bool duo : {true, false}) {
    MethodSettings settings = awq();
    settings.duo_scaling = duo;
    const at::Tensor scales =
        candidate_scales({problem.weight, at::zeros({3, 64})}, magnitude, settings);
    EXPECT_TRUE(scales.isfinite().logical_and(scales.gt(0)).all().item<bool>());
  }
}

TEST(Awq, FoldingChangesNothingThatIsComputed) {
  at::manual_seed(1);
  const at::Tensor scale = at::exp2(at::randn({8}));
  for (const double offset : {0.0, 1.0}) {
    BlockWeights weights{{"norm.weight", at::randn({8})},
                         {"norm.bias", at::randn({8})},
                         {"q.weight", at::randn({5, 8})},
                         {"k.weight", at::randn({3, 8})}};
    const at::Tensor x = at::randn({7, 8});
    const auto output = [&](const char* name) {
      const at::Tensor normed = x * (offset + weights.at("norm.weight")) + weights.at("norm.bias");
      return normed.mm(weights.at(std::string(name) + ".weight").t());
    };
    const at::Tensor q = output("q"), k = output("k");
    const ScalePair pair{"norm", {"q", "k"}, "attention", offset};
    fold_scale(weights, pair, scale);
    EXPECT_TRUE(at::allclose(output("q"), q, 1e-4, 1e-5));
    EXPECT_TRUE(at::allclose(output("k"), k, 1e-4, 1e-5));
    EXPECT_EQ(folded_tensors(weights, pair),
              (std::vector<std::string>{"norm.weight", "norm.bias", "q.weight", "k.weight"}));
  }
  // The last rows of a producer that makes more than its consumer reads.
  BlockWeights weights{{"gate_up.weight", at::randn({16, 4})}, {"down.weight", at::randn({6, 8})}};
  const at::Tensor before = weights.at("gate_up.weight").clone();
  const at::Tensor product = weights.at("down.weight").mm(before.narrow(0, 8, 8));
  fold_scale(weights, {"gate_up", {"down"}, "down", 0}, scale);
  const at::Tensor after = weights.at("gate_up.weight");
  EXPECT_TRUE(same_bits(after.narrow(0, 0, 8).contiguous(), before.narrow(0, 0, 8).contiguous()));
  EXPECT_TRUE(
      at::allclose(weights.at("down.weight").mm(after.narrow(0, 8, 8)), product, 1e-4, 1e-5));
}

TEST(Clip, IsNeverWorseWithinAGroupAndHelpsWithOutliers) {
  Problem problem = random_problem(5, 60, 64);
  for (int64_t row = 0; row < 60; ++row) problem.weight[row][row % 64] = 0.4;
  // Only the diagonal blocks of the groups, which is what the search looks at.
  at::Tensor blocks = at::zeros({64, 64});
  for (int64_t g = 0; g < 64; g += 16) blocks.narrow(0, g, 16).narrow(1, g, 16).fill_(1);
  problem.hessian = (problem.hessian * blocks).contiguous();
  for (const bool symmetric : {true, false}) {
    MethodSettings settings = awq(3, true);
    settings.symmetric = symmetric;
    const SolvedRows clipped = solve(problem, settings, 2);
    EXPECT_TRUE(clipped.error.le(clipped.nearest_error * 1.0001).all().item<bool>());
    EXPECT_LT(clipped.error.sum().item<double>(),
              0.98 * clipped.nearest_error.sum().item<double>());
    EXPECT_TRUE(same_bits(solve(problem, settings, 4).linear.weight, clipped.linear.weight));
  }
}

TEST(Magnitudes, AreTheSameInAnyOrderAndRight) {
  at::manual_seed(3);
  std::vector<at::Tensor> leaves;
  for (int i = 0; i < 5; ++i)
    leaves.push_back((at::randn({200, 70}) * at::exp2(8 * at::randn({1, 70}))).to(at::kBFloat16));
  HessianAccumulator hessian(70, {});
  for (const auto& leaf : leaves) hessian.observe(leaf);
  const auto measure = [&](bool reversed) {
    MagnitudeAccumulator sums(hessian.exponents(), {});
    for (size_t i = 0; i < leaves.size(); ++i)
      sums.add(leaves[reversed ? leaves.size() - 1 - i : i]);
    return sums.finish(1000);
  };
  EXPECT_TRUE(same_bits(measure(false), measure(true)));
  const at::Tensor expected = at::cat(leaves).to(at::kDouble).abs().mean(0);
  EXPECT_TRUE(at::allclose(measure(false).to(at::kDouble), expected, 1e-6));
}

}  // namespace
}  // namespace selfcal
