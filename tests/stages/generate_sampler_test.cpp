// The choice of one token: distribution, truncation, edge cases.
#include "stages/generate/sampler.hpp"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "stages/generate/micro_batch.hpp"
#include "stages/generate/ranking.hpp"
#include "stages/generate/settings.hpp"
#include "tests/storage/temporary_folder.hpp"

namespace selfcal {
namespace {

constexpr float infinity = std::numeric_limits<float>::infinity();

Choice choose(const at::Tensor& logits, const DrawId& id, double temperature = 1.0,
              const SamplingRule& rule = {}) {
  return choose_tokens({}, logits.clone().view({1, -1}), {{0, id, temperature}}, rule).front();
}

/// How often each token is chosen by `draws` random numbers.
std::vector<int64_t> frequencies(const at::Tensor& logits, double temperature,
                                 const SamplingRule& rule, uint32_t draws) {
  std::vector<int64_t> counts(logits.numel());
  std::vector<Draw> all;
  for (uint32_t i = 0; i < draws; ++i) all.push_back({0, {7, 0, i % 16, 0, i / 16}, temperature});
  for (const Choice& choice : choose_tokens({}, logits.clone().view({1, -1}), all, rule))
    ++counts[choice.token];
  return counts;
}

/// Pearson's statistic of counts against probabilities (of which none is tiny).
double chi_square(const std::vector<int64_t>& counts, const at::Tensor& probabilities) {
  double total = 0, statistic = 0;
  for (int64_t count : counts) total += count;
  for (size_t i = 0; i < counts.size(); ++i) {
    const double expected = probabilities[i].item<double>() * total;
    if (expected > 0) statistic += (counts[i] - expected) * (counts[i] - expected) / expected;
  }
  return statistic;
}

const at::Tensor ten_logits =
    at::tensor({0.3, -1.0, 2.0, 0.0, 1.5, 0.7, -0.5, 1.0, 0.2, -0.8}, at::kFloat);

TEST(Sampler, FollowsTheTemperedDistribution) {
  for (double temperature : {0.7, 1.0, 2.0}) {
    const auto expected = at::softmax(ten_logits.to(at::kDouble) / temperature, 0);
    // 9 degrees of freedom: 27.9 is exceeded with probability 0.001; the draws are fixed.
    EXPECT_LT(chi_square(frequencies(ten_logits, temperature, {}, 20000), expected), 27.9);
  }
  const auto wrong = at::softmax(ten_logits.to(at::kDouble) / 1.2, 0);
  EXPECT_GT(chi_square(frequencies(ten_logits, 1.0, {}, 20000), wrong), 27.9);
}

TEST(Sampler, FollowsTheDistributionOverManyBlocks) {
  const auto logits = at::sin(at::arange(1000, at::kFloat)) * 3;
  const auto counts = frequencies(logits, 1.0, {}, 50000);
  const auto expected = at::softmax(logits.to(at::kDouble), 0);
  EXPECT_LT(chi_square(counts, expected), 1143);  // 999 degrees of freedom, probability 0.001
}

TEST(Sampler, LogProbabilityIsOfTheDistributionDrawnFrom) {
  for (uint32_t i = 0; i < 50; ++i) {
    const Choice plain = choose(ten_logits, {1, 0, i, 0, 0}, 0.8);
    const auto expected = at::log_softmax(ten_logits.to(at::kDouble) / 0.8, 0);
    EXPECT_NEAR(plain.log_prob, expected[plain.token].item<double>(), 1e-6);

    SamplingRule rule;
    rule.top_k = 3;  // tokens 2, 4, 7
    const Choice cut = choose(ten_logits, {1, 0, i, 0, 0}, 1.0, rule);
    const double kept = std::exp(2.0) + std::exp(1.5) + std::exp(1.0);
    EXPECT_NEAR(cut.log_prob, ten_logits[cut.token].item<double>() - std::log(kept), 1e-6);
  }
}

TEST(Sampler, InvertsThePrefixSumInVocabularyOrder) {
  const auto logits = at::log(at::tensor({0.1, 0.2, 0.3, 0.4}, at::kFloat));
  for (uint32_t i = 0; i < 200; ++i) {
    const DrawId id{3, 1, i, 2, 5};
    const double u = uniform(id);
    EXPECT_EQ(choose(logits, id).token, u < 0.1 ? 0 : u < 0.3 ? 1 : u < 0.6 ? 2 : 3);
  }
}

TEST(Sampler, TopKKeepsTheLikeliestTiesByLowestId) {
  const auto logits = at::tensor({1.0, 2.0, 2.0, 0.0, 2.0, 1.0}, at::kFloat);
  SamplingRule rule;
  rule.top_k = 2;
  auto counts = frequencies(logits, 1.0, rule, 500);
  EXPECT_EQ(counts[1] + counts[2], 500);
  EXPECT_GT(std::min(counts[1], counts[2]), 200);
  rule.top_k = 4;
  counts = frequencies(logits, 1.0, rule, 2000);
  EXPECT_EQ(counts[3] + counts[5], 0);
  EXPECT_GT(counts[0], 100);
  rule.top_k = 6;
  EXPECT_GT(frequencies(logits, 1.0, rule, 2000)[3], 20);
}

TEST(Sampler, TopPKeepsTheFewestThatHoldTheProbability) {
  const auto logits = at::log(at::tensor({0.05, 0.5, 0.15, 0.3}, at::kFloat));
  SamplingRule rule;
  const auto kept = [&](double p) {
    rule.top_p = p;
    const auto counts = frequencies(logits, 1.0, rule, 3000);
    return std::vector<bool>{counts[0] > 0, counts[1] > 0, counts[2] > 0, counts[3] > 0};
  };
  EXPECT_EQ(kept(0.01), std::vector<bool>({false, true, false, false}));
  EXPECT_EQ(kept(0.49), std::vector<bool>({false, true, false, false}));
  EXPECT_EQ(kept(0.6), std::vector<bool>({false, true, false, true}));
  EXPECT_EQ(kept(0.9), std::vector<bool>({false, true, true, true}));
  EXPECT_EQ(kept(0.999), std::vector<bool>({true, true, true, true}));
}

TEST(Sampler, TopPCountsWithinTopK) {
  const auto logits = at::log(at::tensor({0.4, 0.3, 0.2, 0.1}, at::kFloat));
  SamplingRule rule;
  rule.top_k = 2;    // 4/7 and 3/7 remain
  rule.top_p = 0.5;  // 4/7 is enough; 0.4 of the whole would not be
  EXPECT_EQ(frequencies(logits, 1.0, rule, 500)[0], 500);
}

TEST(Sampler, BannedTokensAreNeverChosen) {
  SamplingRule rule;
  rule.banned = {2, 4};
  const auto counts = frequencies(ten_logits, 1.0, rule, 5000);
  EXPECT_EQ(counts[2] + counts[4], 0);
  auto expected = at::softmax(ten_logits.to(at::kDouble), 0);
  for (int64_t token : rule.banned) expected[token] = 0;
  EXPECT_LT(chi_square(counts, expected / expected.sum()), 26.1);
  EXPECT_EQ(choose(ten_logits, {}, 0, rule).token, 7);
}

TEST(Sampler, ColdIsGreedyWithTiesByLowestId) {
  const auto logits = at::tensor({0.0, 3.0, 1.0, 3.0}, at::kFloat);
  for (uint32_t i = 0; i < 20; ++i) {
    const Choice choice = choose(logits, {0, 0, i, 0, 0}, 0);
    EXPECT_EQ(choice.token, 1);
    EXPECT_EQ(choice.log_prob, 0);
    EXPECT_EQ(choose(ten_logits, {0, 0, i, 0, 0}, 1e-3).token, 2);
    EXPECT_EQ(choose(ten_logits, {0, 0, i, 0, 0}, 1e-300).token, 2);
  }
}

TEST(Sampler, MinusInfinityIsImpossibleAndTheRestUnfit) {
  auto logits = ten_logits.clone();
  logits[2] = -infinity;
  EXPECT_EQ(frequencies(logits, 1.0, {}, 2000)[2], 0);
  const auto expect_unfit = [](at::Tensor unfit) {
    expect_error(ExitCode::data, "sequence 3, position 17", [&] {
      choose(unfit, {0, 0, 3, 0, 17});
    });
  };
  logits[5] = std::nanf("");
  expect_unfit(logits);
  logits[5] = infinity;
  expect_unfit(logits);
  expect_unfit(at::full({8}, -infinity));
}

TEST(Sampler, ChoicesDoNotDependOnThreads) {
  at::manual_seed(1);
  const auto logits = at::randn({16, 3000}) * 4;
  std::vector<Draw> draws;
  for (uint32_t row = 0; row < 16; ++row) draws.push_back({row, {1, 0, row, 0, 9}, 0.9});
  for (const SamplingRule& rule : {SamplingRule{}, SamplingRule{40, 0.9, {}}}) {
    const auto expected = choose_tokens({}, logits.clone(), draws, rule);
    for (int threads : {2, 4}) {
      ThreadPool pool(threads);
      const auto choices = choose_tokens({&pool}, logits.clone(), draws, rule);
      for (size_t i = 0; i < draws.size(); ++i) {
        EXPECT_EQ(choices[i].token, expected[i].token);
        EXPECT_EQ(choices[i].log_prob, expected[i].log_prob);
      }
    }
  }
}

TEST(Ranking, AgreesWithSorting) {
  at::manual_seed(2);
  // Rounded logits, so that there are ties; a far tail in the last bucket.
  auto logits = at::round(at::randn({5000}) * 20) / 4;
  logits.narrow(0, 100, 50).fill_(-200);
  const auto weights = at::exp(logits - logits.max());
  const auto order = std::get<1>(at::sort(logits, /*stable=*/true, 0, /*descending=*/true));
  const auto sums = weights.to(at::kDouble).index_select(0, order).cumsum(0);
  const Ranking ranking(logits.const_data_ptr<float>(), weights.const_data_ptr<float>(), 5000,
                        logits.max().item<float>());
  for (int64_t tokens : {1, 2, 10, 333, 4950, 4951, 5000}) {
    const Cut cut = ranking.first(tokens);
    EXPECT_EQ(cut.token, order[tokens - 1].item<int64_t>()) << tokens;
    EXPECT_NEAR(cut.weight, sums[tokens - 1].item<double>(), 1e-9);
  }
  for (double share : {0.01, 0.5, 0.9, 0.999}) {
    const double weight = share * sums[4999].item<double>();
    EXPECT_EQ(ranking.holding(weight).token, order[(sums < weight).sum()].item<int64_t>()) << share;
  }
}

TEST(Temperature, RunsLinearlyThenStays) {
  CalibrationSettings settings;
  settings.temperature_initial = 2.0;
  settings.temperature_final = 1.0;
  settings.temperature_steps = 4;
  EXPECT_EQ(settings.temperature_at(0), 2.0);
  EXPECT_EQ(settings.temperature_at(1), 1.75);
  EXPECT_EQ(settings.temperature_at(4), 1.0);
  EXPECT_EQ(settings.temperature_at(400), 1.0);
  settings.temperature_steps = 0;
  EXPECT_EQ(settings.temperature_at(0), 1.0);
}

TEST(MicroBatches, AsManySideBySideAsReadTheWeightsForFree) {
  CalibrationSettings settings;
  settings.sequences = 64;
  settings.length = 512;
  settings.micro_batch = 4;
  ModelShape shape;
  shape.key_value_heads = 2;
  shape.head_dim = 64;
  const double cache = 2.0 * 4 * 512 * 2 * 64;
  EXPECT_EQ(micro_batches_at_once(settings, shape, 100 * cache), kernels::few_rows / 4);
  EXPECT_EQ(micro_batches_at_once(settings, shape, 3.5 * cache), 3);
  EXPECT_EQ(micro_batches_at_once(settings, shape, 0.5 * cache), 1);
  settings.sequences = 7;
  EXPECT_EQ(micro_batches_at_once(settings, shape, 100 * cache), 2);
  settings.micro_batch = 40;
  EXPECT_EQ(micro_batches_at_once(settings, shape, 100 * cache), 1);
}

}  // namespace
}  // namespace selfcal
