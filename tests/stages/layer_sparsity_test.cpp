// Outlier-weighed layerwise sparsity: norms, outliers and shares against plain arithmetic in
// float64.
#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "base/error.hpp"
#include "stages/calibrate/column_norms.hpp"
#include "stages/solve/layer_sparsity.hpp"
#include "tests/stages/solve_support.hpp"

namespace selfcal {
namespace {

using namespace testing_support;

std::vector<at::Tensor> random_leaves(at::ScalarType dtype) {
  at::manual_seed(1);
  std::vector<at::Tensor> leaves;
  for (const int64_t tokens : {5, 1, 33, 17, 64})
    leaves.push_back((at::randn({tokens, 130}) * at::exp2(at::randn({130}) * 8)).to(dtype));
  for (auto& leaf : leaves) leaf.select(1, 7).zero_();
  return leaves;
}

/// The leaves dealt to `ranks`, reduced as the pipeline reduces them.
at::Tensor norms_of(const std::vector<at::Tensor>& leaves, int ranks, int threads) {
  Threads pool(threads);
  std::vector<ColumnNorms> team;
  for (int rank = 0; rank < ranks; ++rank)
    team.emplace_back(leaves.front().size(1), pool.context());
  int64_t tokens = 0;
  for (size_t i = 0; i < leaves.size(); ++i) {
    team[i % ranks].add(leaves[i]);
    tokens += leaves[i].size(0);
  }
  for (size_t column = 0; column < team[0].exponents().size(); ++column) {
    int32_t largest = team[0].exponents()[column];
    for (auto& rank : team) largest = std::max(largest, rank.exponents()[column]);
    for (auto& rank : team) rank.exponents()[column] = largest;
  }
  for (auto& rank : team) rank.count();
  for (int rank = 1; rank < ranks; ++rank)
    for (size_t i = 0; i < team[0].sums().size(); ++i) team[0].sums()[i] += team[rank].sums()[i];
  return team[0].finish(tokens);
}

TEST(ColumnNorms, AreTheSameForAnyDealing) {
  for (const auto dtype : {at::kFloat, at::kBFloat16}) {
    auto leaves = random_leaves(dtype);
    const at::Tensor all = at::cat(leaves).to(at::kDouble);
    const at::Tensor expected = all.square().mean(0).sqrt();
    const at::Tensor norms = norms_of(leaves, 1, 1);
    EXPECT_TRUE(at::allclose(norms.to(at::kDouble), expected, 1e-6, 0));
    EXPECT_EQ(norms[7].item<float>(), 0);
    for (const int ranks : {1, 2, 3, 7}) {
      EXPECT_TRUE(same_bits(norms_of(leaves, ranks, 3), norms)) << ranks;
      std::rotate(leaves.begin(), leaves.begin() + 2, leaves.end());
    }
  }
}

TEST(ColumnNorms, RefuseWhatIsNotFinite) {
  auto leaves = random_leaves(at::kFloat);
  leaves[2][3][5] = INFINITY;
  expect_failure(ExitCode::data, "not finite", [&] { norms_of(leaves, 2, 1); });
}

TEST(LayerSparsity, CountsScoresAboveAMultipleOfTheMean) {
  at::manual_seed(2);
  for (const auto dtype : {at::kFloat, at::kBFloat16}) {
    const at::Tensor weight = (at::randn({37, 300}) * at::exp2(at::randn({37, 300}))).to(dtype);
    const at::Tensor norms = at::rand({300});
    const at::Tensor scores = (weight.to(at::kFloat).abs() * norms).to(at::kDouble);
    const double sum = sum_of_scores(weight, norms);
    EXPECT_NEAR(sum / scores.sum().item<double>(), 1, 1e-12);
    const double threshold = 3 * sum / double(scores.numel());
    EXPECT_EQ(scores_above(weight, norms, threshold), scores.gt(threshold).sum().item<int64_t>());
    EXPECT_GT(scores_above(weight, norms, threshold), 0);
    // Rows of a larger matrix.
    EXPECT_EQ(sum_of_scores(weight.narrow(0, 5, 8), norms),
              sum_of_scores(weight.narrow(0, 5, 8).contiguous(), norms));
  }
}

/// prune_wanda_outlier of the published code: ratios to kept shares, of blocks of one size.
std::vector<double> published(const std::vector<double>& ratios, double target, double lambda) {
  const auto [least, most] = std::ranges::minmax(ratios);
  double mean = 0;
  std::vector<double> kept;
  for (const double ratio : ratios) {
    kept.push_back((ratio - least) * (1 / (most - least) * lambda * 2));
    mean += kept.back() / double(ratios.size());
  }
  for (double& share : kept) share = 1 - (share - mean + (1 - target));
  return kept;
}

TEST(LayerSparsity, IsThePublishedMapping) {
  const std::vector<OutlierCount> blocks{{70, 1000}, {20, 1000}, {35, 1000}, {21, 1000}};
  const auto shares = owl_sparsity(blocks, 0.7, 0.08);
  const auto expected = published({0.07, 0.02, 0.035, 0.021}, 0.7, 0.08);
  for (size_t i = 0; i < blocks.size(); ++i) EXPECT_NEAR(shares[i], expected[i], 1e-12);
  EXPECT_EQ(owl_sparsity({{5, 100}, {10, 200}}, 0.6, 0.08), (std::vector<double>{0.6, 0.6}));
}

TEST(LayerSparsity, KeepsTheMeanOverAllEntries) {
  // The second block takes no part; the third is three times as large.
  const std::vector<OutlierCount> blocks{{10, 100}, {0, 0}, {3, 300}, {4, 100}};
  const auto shares = owl_sparsity(blocks, 0.5, 0.1);
  EXPECT_EQ(shares[1], 0.5);
  EXPECT_NEAR((shares[0] * 100 + shares[2] * 300 + shares[3] * 100) / 500, 0.5, 1e-12);
  EXPECT_LT(shares[0], shares[3]);
  EXPECT_LT(shares[3], shares[2]);
  EXPECT_NEAR(shares[2] - shares[0], 0.2, 1e-12);
}

}  // namespace
}  // namespace selfcal
