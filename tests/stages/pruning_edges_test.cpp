// Pruners at the edges: bad inputs, sizes that leave the range of float32, zeros; thresholds and
// patterns by themselves.
#include <gtest/gtest.h>

#include <cmath>
#include <random>

#include "stages/solve/pruning.hpp"
#include "stages/solve/threshold.hpp"
#include "tests/stages/pruning_support.hpp"

namespace selfcal {
namespace {

using namespace testing_support;

TEST(Pruning, BadInputsAreRefused) {
  const Problem problem = random_problem(7, 20, 66);
  const auto refused = [&](const Problem& bad, const Sparsity& sparsity, const std::string& text) {
    for (const auto name : {MethodName::sparsegpt, MethodName::wanda})
      expect_failure(ExitCode::data, text, [&] { solve(bad, pruner(name, sparsity), 2); });
  };
  refused(problem, {0, {2, 4}}, "pattern 2:4 does not divide the 66 columns");
  refused({problem.weight * NAN, problem.hessian}, {0.5, {}}, "weight not finite");
  refused({problem.weight, problem.hessian * NAN}, {0.5, {}}, "Hessian not finite");
  const auto no_method = [](const std::string& text, auto change) {
    MethodSettings settings = pruner(MethodName::sparsegpt, {0.5, {}});
    change(settings);
    expect_failure(ExitCode::config, text, [&] { make_method(settings, {}); });
  };
  no_method("sparsity is 1", [](auto& s) { s.sparsity.share = 1; });
  no_method("sparsity is nan", [](auto& s) { s.sparsity = {NAN, {2, 4}}; });
  no_method("are both set", [](auto& s) { s.sparsity.pattern = {2, 4}; });
  no_method("pattern is 4:4", [](auto& s) { s.sparsity = {0, {4, 4}}; });
  no_method("needs sparsity", [](auto& s) { s.sparsity = {}; });
  no_method("a multiple of 6", [](auto& s) { s.sparsity = {0, {3, 6}}; });
  no_method("group_size is 16, expected a multiple of 6 (pattern is 3:6)", [](auto& s) {
    s.sparsity = {0, {3, 6}};
    s.block_size = 30;
    s.bits = 4;
    s.static_groups = AutoFlag::no;
  });
  no_method("expected act_order", [](auto& s) {
    s.name = MethodName::wanda;
    s.act_order = ActOrder::static_order;
  });
  no_method("act_order is dynamic", [](auto& s) { s.act_order = ActOrder::dynamic_order; });
  no_method("could get -0.1 or 0.3", [](auto& s) {
    s.sparsity.share = 0.1;
    s.sparsity.by_outliers = true;
    s.sparsity.owl.lambda = 0.1;
  });
  no_method("expected a share", [](auto& s) {
    s.sparsity = {0, {2, 4}};
    s.sparsity.by_outliers = true;
  });
  no_method("does not prune", [](auto& s) {
    s.name = MethodName::gptq;
    s.bits = 4;
  });
  no_method("bits is 16", [](auto& s) {
    s.name = MethodName::nearest;
    s.sparsity = {};
  });
}

/// Every way to prune.
std::vector<MethodSettings> all_pruners() {
  std::vector<MethodSettings> all;
  for (const auto name : {MethodName::sparsegpt, MethodName::wanda, MethodName::magnitude})
    for (const int bits : {unquantised_bits, 4})
      for (const Sparsity& sparsity : {Sparsity{0, {2, 4}}, Sparsity{0.5, {}}})
        all.push_back(pruner(name, sparsity, bits));
  return all;
}

std::string description(const MethodSettings& settings) {
  return fmt::format("{}, {} bits, {}", to_text(settings.name), settings.bits,
                     settings.sparsity.share > 0 ? "share" : "pattern");
}

TEST(Pruning, PowersOfTwoChangeNothingButTheScale) {
  const Problem problem = random_problem(12, 70, 96);
  for (const MethodSettings& settings : all_pruners()) {
    SCOPED_TRACE(description(settings));
    const MeasuredRows expected = solve(problem, settings);
    for (const auto& [weights, inputs] :
         {std::pair{-100.0, 0.0}, {60.0, 0.0}, {0.0, -100.0}, {0.0, 100.0}, {-100.0, -100.0}}) {
      const MeasuredRows scaled = solve(
          {problem.weight * std::exp2(weights), problem.hessian * std::exp2(inputs)}, settings, 2);
      EXPECT_TRUE(same_bits(scaled.linear.mask, expected.linear.mask)) << weights << inputs;
      EXPECT_TRUE(same_bits(scaled.linear.weight, expected.linear.weight * std::exp2(weights)));
    }
  }
}

TEST(Pruning, WhatIsTooSmallLosesDigitsOnly) {
  const Problem problem = random_problem(13, 70, 96);
  for (const MethodSettings& settings : all_pruners()) {
    SCOPED_TRACE(description(settings));
    const at::Tensor expected = mask_of(solve(problem, settings));
    for (const Problem& small : {Problem{problem.weight * 1e-41, problem.hessian},
                                 Problem{problem.weight, problem.hessian * 1e-41}}) {
      const MeasuredRows solved = solve(small, settings);
      EXPECT_TRUE(solved.linear.weight.isfinite().all().item<bool>());
      EXPECT_GE(share_equal(mask_of(solved), expected), 0.95);
      EXPECT_NEAR(mask_of(solved).to(at::kDouble).mean().item<double>(), 0.5, 0.01);
    }
  }
}

TEST(Pruning, ZerosInZerosOut) {
  const Problem problem = random_problem(14, 40, 64);
  for (const MethodSettings& settings : all_pruners()) {
    SCOPED_TRACE(description(settings));
    const MeasuredRows nothing = solve({at::zeros({40, 64}), problem.hessian}, settings);
    EXPECT_EQ(nothing.linear.weight.abs().max().item<float>(), 0);
    // Inputs that are always zero: whatever stays has no effect.
    const MeasuredRows unread = solve({problem.weight, at::zeros({64, 64})}, settings);
    EXPECT_TRUE(unread.linear.weight.isfinite().all().item<bool>());
    EXPECT_EQ(unread.error.abs().max().item<double>(), 0);
    EXPECT_EQ(unread.linear.dead_columns, 64);
    if (settings.sparsity.share > 0) continue;
    for (const MeasuredRows* solved : {&nothing, &unread})
      EXPECT_EQ(mask_of(*solved).to(at::kDouble).mean().item<double>(), 0.5);
  }
}

TEST(Pruning, WhatCannotBeSolvedIsRefused) {
  const Problem problem = random_problem(15, 40, 64);
  at::Tensor coupled = problem.hessian.clone(), hole = problem.hessian.clone();
  coupled[3][7] = coupled[7][3] = 3 * problem.hessian.diag().max();
  hole[5][5] = -1e-3;
  for (const MethodSettings& settings : all_pruners()) {
    SCOPED_TRACE(description(settings));
    const auto refused = [&](const Problem& bad, const std::string& text) {
      expect_failure(ExitCode::data, text, [&] { solve(bad, settings, 2); });
    };
    refused({problem.weight * NAN, problem.hessian}, "weight not finite");
    refused({problem.weight * 1e40, problem.hessian}, "weight not finite");
    refused({problem.weight, problem.hessian * NAN}, "Hessian not finite");
    refused({problem.weight, problem.hessian * INFINITY}, "Hessian not finite");
    refused({problem.weight, -problem.hessian}, "not positive definite");
    refused({problem.weight, hole}, "-0.001 on its diagonal");
    refused({problem.weight * 1e25, problem.hessian * 1e20}, "too large");
    refused({problem.weight * 3e38, problem.hessian}, "too large");
    if (compensates(settings.name)) refused({problem.weight, coupled}, "not positive definite");
    // What damping cures is recorded.
    at::Tensor crooked = problem.hessian.clone();
    crooked.diagonal().sub_(0.02 * problem.hessian.diag().mean());
    crooked = crooked + at::diag(crooked.diag().lt(0).to(at::kFloat) * -crooked.diag());
    const MeasuredRows solved = solve({problem.weight, crooked}, settings);
    EXPECT_TRUE(solved.linear.weight.isfinite().all().item<bool>());
    EXPECT_EQ(solved.linear.damping_retries > 0, compensates(settings.name));
  }
}

TEST(Threshold, IsTheExactOrderStatistic) {
  std::mt19937 engine(1);
  for (const int64_t count : {1, 2, 1000, 50000}) {
    std::vector<float> scores(static_cast<size_t>(count));
    std::lognormal_distribution<float> distribution(0, 20);
    for (auto& score : scores)
      score = engine() % 4 == 0 ? 0.0f : std::min(distribution(engine), 3e38f);
    std::vector<float> sorted = scores;
    std::sort(sorted.begin(), sorted.end());
    for (const double share : {0.0, 0.3, 0.5, 0.99}) {
      ThresholdSearch search(share);
      for (int pass = 0; pass < ThresholdSearch::passes; ++pass) {
        search.clear();
        search.count(scores, search.histogram());
        search.narrow();
      }
      EXPECT_EQ(search.threshold(), sorted[static_cast<size_t>(double(count) * share)]) << count;
    }
  }
}

TEST(Patterns, AreReadFromText) {
  EXPECT_EQ(parse_pattern("2:4"), (lanes::Pattern{2, 4}));
  for (const char* bad :
       {"", "2", "2:", ":4", "2:4 ", "0:4", "4:4", "2:65", "-1:4", "2:4:8", "a:b"})
    EXPECT_FALSE(parse_pattern(bad)) << bad;
}

}  // namespace
}  // namespace selfcal
