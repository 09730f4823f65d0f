// Pruners: against a float64 SparseGPT, and on rows that several ranks hold.
#include <gtest/gtest.h>

#include <barrier>
#include <cmath>
#include <mutex>
#include <random>
#include <thread>

#include "stages/solve/pruning.hpp"
#include "tests/stages/pruning_support.hpp"

namespace selfcal {
namespace {

using namespace testing_support;

struct Case {
  std::string name;
  MethodSettings settings;
};

void PrintTo(const Case& value, std::ostream* out) { *out << value.name; }

/// Patterns, each with a block of whole runs, and shares; alone and with groups in the same solve.
std::vector<Case> sparsegpt_cases() {
  std::vector<Case> all;
  const auto add = [&](const std::string& name, MethodSettings settings, auto change) {
    change(settings);
    all.push_back({name, settings});
  };
  for (const auto& [zeros, of] :
       {std::pair{1, 2}, {2, 4}, {1, 4}, {3, 4}, {4, 8}, {7, 8}, {3, 6}, {12, 16}, {3, 32}}) {
    const auto fit = [&, of = of](MethodSettings& s) { s.block_size = 32 / of * of; };
    const std::string name = fmt::format("{}_of_{}", zeros, of);
    add(name, pruner(MethodName::sparsegpt, {0, {zeros, of}}), fit);
    add(name + "_ordered", pruner(MethodName::sparsegpt, {0, {zeros, of}}), [&](auto& s) {
      fit(s);
      s.act_order = ActOrder::static_order;
    });
  }
  for (const double share : {0.1, 0.5, 0.9})
    add(fmt::format("share_{}", int(100 * share)), pruner(MethodName::sparsegpt, {share, {}}),
        [](auto&) {});
  for (const int bits : {3, 4, 5}) {
    const auto joint = pruner(MethodName::sparsegpt, {0, {2, 4}}, bits);
    const std::string name = fmt::format("joint_{}_bits_", bits);
    add(name + "static_groups", joint, [](auto&) {});
    add(name + "ordered", joint, [](auto& s) { s.act_order = ActOrder::static_order; });
    add(name + "dynamic_groups", joint, [](auto& s) { s.static_groups = AutoFlag::no; });
    add(name + "published_groups", joint, [](auto& s) {
      s.static_groups = AutoFlag::no;
      s.group_parameters = GroupParameters::published;
    });
    add(name + "whole_rows_asymmetric", joint,
        [](auto& s) { s.group_size = -1, s.symmetric = false; });
    add(name + "share_dynamic_groups", pruner(MethodName::sparsegpt, {0.5, {}}, bits),
        [](auto& s) { s.static_groups = AutoFlag::no; });
  }
  return all;
}

class SparseGptReference : public testing::TestWithParam<Case> {};

TEST_P(SparseGptReference, AgreesWithFloat64) {
  const MethodSettings& settings = GetParam().settings;
  for (const int64_t rows : {70, 400}) {
    const Problem problem = random_problem(int(rows), rows, 96);
    const MeasuredRows solved = solve(problem, settings, 2);
    const ReferenceRows expected = reference(problem, settings);
    // A weight that falls to the other side of a tie moves the rest of its row, the more the fewer
    // bits; how many do so depends on the processor, which draws other random numbers and factors
    // with other roundings.
    EXPECT_GE(share_equal(mask_of(solved), expected.kept), settings.bits == 3 ? 0.998 : 0.999);
    EXPECT_NEAR(
        relative_error(problem, solved.linear.weight) / relative_error(problem, expected.weight), 1,
        rows == 70           ? 5e-3
        : settings.bits == 3 ? 3e-3
                             : 1e-3);
    EXPECT_EQ(solved.linear.weight.masked_select(mask_of(solved).logical_not())
                  .count_nonzero()
                  .item<int64_t>(),
              0);
    EXPECT_LT(solved.error.sum().item<double>(), solved.nearest_error.sum().item<double>());
    if (settings.quantises()) {
      const at::Tensor codes = unpack_codes(solved.linear.codes, settings.bits, 96);
      EXPECT_GE(share_equal(codes, expected.codes), 0.99);
    }
    if (const auto [zeros, of] = settings.sparsity.pattern; of > 0) {
      const at::Tensor kept = mask_of(solved).to(at::kLong).view({rows, -1, of}).sum(2);
      EXPECT_TRUE(kept.eq(of - zeros).all().item<bool>());
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Settings, SparseGptReference, testing::ValuesIn(sparsegpt_cases()),
                         [](const auto& value) { return value.param.name; });

TEST(Pruning, PatternsTakeTheLowestOfEveryRun) {
  const Problem problem = random_problem(17, 70, 96);
  for (const auto name : {MethodName::wanda, MethodName::magnitude})
    for (const auto& [zeros, of] :
         {std::pair{1, 2}, {2, 4}, {1, 4}, {3, 4}, {4, 8}, {7, 8}, {3, 6}, {20, 32}}) {
      const MeasuredRows solved = solve(problem, pruner(name, {0, {zeros, of}}), 2);
      at::Tensor scores = problem.weight.to(at::kDouble).abs();
      if (name == MethodName::wanda)
        scores = scores * problem.hessian.diag().to(at::kDouble).sqrt();
      const at::Tensor lowest =
          std::get<1>(scores.view({70, -1, of}).topk(zeros, 2, /*largest=*/false));
      at::Tensor kept = at::ones({70, 96 / of, of}, at::kBool);
      kept.scatter_(2, lowest, false);
      EXPECT_TRUE(mask_of(solved).equal(kept.view({70, 96}))) << to_text(name) << zeros << of;
      EXPECT_TRUE(same_bits(solved.linear.weight,
                            problem.weight.masked_fill(kept.view({70, 96}).logical_not(), 0)));
    }
}

/// The problem with columns order[i] at i.
Problem ordered(const Problem& problem, const at::Tensor& order) {
  return {problem.weight.index_select(1, order).contiguous(),
          problem.hessian.index_select(0, order).index_select(1, order).contiguous()};
}

/// Ordered by falling diagonal, a problem is solved as the reordered problem is in its order; the
/// runs of a pattern stay together, so that the pattern is one of the stored columns.
TEST(SparseGpt, OrdersColumnsByDiagonal) {
  const Problem problem = random_problem(6, 70, 96);
  for (const Sparsity& sparsity : {Sparsity{0.5, {}}, Sparsity{0, {2, 4}}, Sparsity{0, {5, 8}}})
    for (const int bits : {unquantised_bits, 3}) {
      MethodSettings settings = pruner(MethodName::sparsegpt, sparsity, bits);
      settings.group_size = -1;  // groups of the stored columns are others in the reordered problem
      const int64_t run = std::max(1, sparsity.pattern.of);
      const at::Tensor runs = at::arange(96).view({-1, run});
      const at::Tensor sums = problem.hessian.diag().to(at::kDouble).view({-1, run}).sum(1);
      const at::Tensor order =
          runs.index_select(0, std::get<1>(at::sort(sums, /*stable=*/true, 0, true))).flatten();
      const MeasuredRows expected = solve(ordered(problem, order), settings);
      settings.act_order = ActOrder::static_order;
      const MeasuredRows solved = solve(problem, settings, 2);
      EXPECT_TRUE(same_bits(solved.linear.weight.index_select(1, order), expected.linear.weight));
      EXPECT_TRUE(mask_of(solved).index_select(1, order).eq(mask_of(expected)).all().item<bool>());
      if (sparsity.pattern.of > 0) {
        const at::Tensor kept = mask_of(solved).to(at::kLong).view({70, -1, run}).sum(2);
        EXPECT_TRUE(kept.eq(run - sparsity.pattern.zeros).all().item<bool>());
      }
    }
  // Groups of the stored columns, in the same pass.
  MethodSettings joint = pruner(MethodName::sparsegpt, {0, {2, 4}}, 4);
  for (const auto order : {ActOrder::static_order, ActOrder::dynamic_order}) {
    joint.act_order = order;
    const MeasuredRows solved = solve(problem, joint);
    EXPECT_TRUE(same_bits(dequantise(solved.linear, 96, at::kFloat, "w"), solved.linear.weight));
    EXPECT_EQ(solved.linear.g_idx.defined(), order == ActOrder::dynamic_order);
    EXPECT_LT(solved.error.sum().item<double>(), solved.nearest_error.sum().item<double>());
  }
}

/// One matrix whose rows are cut in `ranks` parts, each solved in a thread of its own.
std::vector<SolvedRows> solve_apart(const Problem& problem, const MethodSettings& settings,
                                    int ranks, at::ScalarType dtype = at::kFloat) {
  std::vector<SolvedRows> solved(ranks);
  std::barrier meeting(ranks);
  std::mutex mutex;
  std::vector<int64_t> sums;
  const auto sum = [&](std::span<int64_t> mine) {
    meeting.arrive_and_wait();
    {
      const std::lock_guard lock(mutex);
      sums.resize(mine.size());
      for (size_t i = 0; i < mine.size(); ++i) sums[i] += mine[i];
    }
    meeting.arrive_and_wait();
    std::copy(sums.begin(), sums.end(), mine.begin());
    meeting.arrive_and_wait();
    const std::lock_guard lock(mutex);
    sums.clear();
  };
  std::vector<std::thread> threads;
  for (int rank = 0; rank < ranks; ++rank)
    threads.emplace_back([&, rank] {
      Threads pool(1 + rank % 2);
      const auto method = make_method(settings, pool.context());
      const int64_t rows = problem.weight.size(0), first = rows * rank / ranks,
                    last = rows * (rank + 1) / ranks;
      RowTeam team;
      team.sum = sum;
      solved[rank] = method->solve(problem.weight.narrow(0, first, last - first), problem.hessian,
                                   method->factorise(problem.hessian), dtype, team);
    });
  for (auto& thread : threads) thread.join();
  return solved;
}

TEST(SparseGpt, IsTheSameForAnyRowsOnAnyRanks) {
  const Problem problem = random_problem(3, 150, 80);
  for (const auto& [bits, dtype] : {std::pair{unquantised_bits, at::kFloat},
                                    {3, at::kFloat},
                                    {unquantised_bits, at::kBFloat16},
                                    {3, at::kBFloat16}}) {
    for (const Sparsity& sparsity : {Sparsity{0.5, {}}, Sparsity{0, {2, 4}}}) {
      MethodSettings settings = pruner(MethodName::sparsegpt, sparsity, bits);
      settings.act_order = bits == 3 ? ActOrder::static_order : ActOrder::none;
      const MeasuredRows whole = solve(problem, settings, 1, dtype);
      EXPECT_TRUE(same_bits(solve(problem, settings, 4, dtype).linear.weight, whole.linear.weight));
      for (const int ranks : {2, 3, 4}) {
        int64_t first = 0;
        for (const SolvedRows& part : solve_apart(problem, settings, ranks, dtype)) {
          const int64_t rows = part.linear.weight.size(0);
          const auto of_whole = [&](const at::Tensor& t) {
            return t.narrow(0, first, rows).contiguous();
          };
          EXPECT_TRUE(same_bits(part.linear.weight, of_whole(whole.linear.weight))) << ranks;
          EXPECT_TRUE(same_bits(part.linear.mask, of_whole(whole.linear.mask))) << ranks;
          EXPECT_TRUE(same_bits(part.error, of_whole(whole.error))) << ranks;
          first += rows;
        }
        EXPECT_EQ(first, 150);
      }
    }
  }
  // A rank without rows takes part.
  const Problem few = random_problem(4, 2, 80);
  const MethodSettings settings = pruner(MethodName::sparsegpt, {0.5, {}});
  EXPECT_TRUE(same_bits(at::cat([&] {
                          std::vector<at::Tensor> rows;
                          for (const auto& part : solve_apart(few, settings, 4))
                            rows.push_back(part.linear.weight);
                          return rows;
                        }()),
                        solve(few, settings).linear.weight));
}

TEST(SparseGpt, QuantisesInTheSamePass) {
  const Problem problem = random_problem(11, 64, 128);
  for (const bool symmetric : {true, false}) {
    MethodSettings settings = pruner(MethodName::sparsegpt, {0, {2, 4}}, 4);
    settings.group_size = 32;
    settings.symmetric = symmetric;
    const MeasuredRows joint = solve(problem, settings);
    EXPECT_TRUE(same_bits(dequantise(joint.linear, 128, at::kFloat, "w"), joint.linear.weight));
    EXPECT_EQ(mask_of(joint).to(at::kDouble).mean().item<double>(), 0.5);
    EXPECT_TRUE(
        joint.linear.weight.masked_select(mask_of(joint).logical_not()).eq(0).all().item<bool>());
    // Better than pruning first and rounding what is left.
    MethodSettings only_prunes = settings;
    only_prunes.bits = unquantised_bits;
    MethodSettings rounds = settings;
    rounds.name = MethodName::nearest;
    rounds.sparsity = {};
    const MeasuredRows pruned = solve(problem, only_prunes);
    const MeasuredRows apart = solve({pruned.linear.weight, problem.hessian}, rounds);
    EXPECT_LT(relative_error(problem, joint.linear.weight),
              0.95 * relative_error(problem, apart.linear.weight));
  }
}

TEST(SparseGpt, DiagonalHessianGivesMagnitudeTimesNorm) {
  Problem problem = random_problem(1, 50, 96);
  problem.hessian = at::diag(problem.hessian.diag()).contiguous();
  MethodSettings settings = pruner(MethodName::sparsegpt, {0, {2, 4}});
  settings.damping = 0;
  const MeasuredRows solved = solve(problem, settings);
  settings.name = MethodName::wanda;
  EXPECT_TRUE(same_bits(solved.linear.weight, solve(problem, settings).linear.weight));
}

TEST(Pruning, TakesExactlyTheLowestOfEachRow) {
  Problem problem = random_problem(2, 37, 100);
  problem.weight.select(0, 3).fill_(0.5);  // ties: the first columns go
  for (const double share : {0.01, 0.5, 0.77}) {
    const MeasuredRows solved = solve(problem, pruner(MethodName::magnitude, {share, {}}));
    const at::Tensor kept = mask_of(solved);
    const int64_t pruned = int64_t(100 * share);
    EXPECT_TRUE(kept.to(at::kLong).sum(1).eq(100 - pruned).all().item<bool>());
    EXPECT_EQ(kept[3].narrow(0, 0, pruned).sum().item<int64_t>(), 0);
    const at::Tensor size = problem.weight.abs();
    const at::Tensor lowest_kept = at::where(kept, size, at::full({}, INFINITY)).amin(1),
                     highest_pruned = at::where(kept, at::zeros({}), size).amax(1);
    EXPECT_TRUE(highest_pruned.le(lowest_kept).all().item<bool>());
    EXPECT_TRUE(same_bits(solved.error, solved.nearest_error)) << "it is its own control";
  }
}

TEST(Pruning, WandaRoundsWhatStays) {
  const Problem problem = random_problem(8, 33, 64);
  const MeasuredRows solved = solve(problem, pruner(MethodName::wanda, {0, {4, 8}}, 4));
  EXPECT_TRUE(same_bits(dequantise(solved.linear, 64, at::kFloat, "w"), solved.linear.weight));
  EXPECT_EQ(mask_of(solved).to(at::kDouble).mean().item<double>(), 0.5);
  EXPECT_LT(solved.error.sum().item<double>(), solved.nearest_error.sum().item<double>());
}

TEST(Pruning, WandaNeedsTheDiagonalOnly) {
  const Problem problem = random_problem(9, 70, 96);
  const Problem norms{problem.weight, problem.hessian.diagonal().contiguous()};
  for (const int bits : {unquantised_bits, 4}) {
    MethodSettings settings = pruner(MethodName::wanda, {0, {2, 4}}, bits);
    const MeasuredRows whole = solve(problem, settings);
    settings.error_measure = ErrorMeasure::norms;
    const MeasuredRows solved = solve(norms, settings, 2);
    EXPECT_TRUE(same_bits(solved.linear.weight, whole.linear.weight));
    EXPECT_TRUE(same_bits(solved.linear.mask, whole.linear.mask));
    const auto form = [&](const at::Tensor& x) {
      return x.to(at::kDouble).square().mv(norms.hessian.to(at::kDouble));
    };
    EXPECT_TRUE(at::allclose(solved.reference, form(problem.weight), 1e-6));
    EXPECT_TRUE(at::allclose(solved.error, form(problem.weight - solved.linear.weight), 1e-6));
    EXPECT_LT(solved.error.sum().item<double>(), solved.nearest_error.sum().item<double>());
  }
  const auto settled = [](MethodName name, ErrorMeasure measure) {
    MethodSettings settings;
    settings.name = name;
    settings.error_measure = measure;
    return needs_products(settle(settings));
  };
  EXPECT_FALSE(settled(MethodName::wanda, ErrorMeasure::automatic));
  EXPECT_TRUE(settled(MethodName::wanda, ErrorMeasure::hessian));
  EXPECT_TRUE(settled(MethodName::nearest, ErrorMeasure::automatic));
  EXPECT_FALSE(settled(MethodName::nearest, ErrorMeasure::norms));
  EXPECT_TRUE(settled(MethodName::gptq, ErrorMeasure::norms)) << "it has the Hessian anyway";
}

TEST(Pruning, DeadColumnsGoFirst) {
  Problem problem = random_problem(5, 40, 64);
  for (const int64_t dead : {4, 6}) {
    problem.hessian.select(0, dead).zero_();
    problem.hessian.select(1, dead).zero_();
  }
  for (const auto name : {MethodName::sparsegpt, MethodName::wanda}) {
    const MeasuredRows solved = solve(problem, pruner(name, {0, {2, 4}}));
    EXPECT_EQ(mask_of(solved).narrow(1, 4, 4).to(at::kLong).sum(0)[0].item<int64_t>(), 0);
    EXPECT_EQ(mask_of(solved).narrow(1, 4, 4).to(at::kLong).sum(0)[1].item<int64_t>(), 40);
  }
}

}  // namespace
}  // namespace selfcal
