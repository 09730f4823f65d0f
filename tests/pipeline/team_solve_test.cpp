// Layers solved by a team: by whom what is found, and the same bits from any number of ranks.
#include "pipeline/team_solve.hpp"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <numeric>

#include "comm/agreement.hpp"
#include "pipeline/row_dealing.hpp"

namespace selfcal {
namespace {

double largest_share(const std::vector<RowRun>& runs, std::vector<double> loads, double row_cost) {
  for (const auto& run : runs)
    loads[static_cast<size_t>(run.owner)] += static_cast<double>(run.rows) * row_cost;
  return std::ranges::max(loads);
}

TEST(DealRows, EveryRowOnceInOrderAndATileAtATime) {
  const std::vector<RowsToDeal> matrices{{0, 100, 32, 1}, {1, 7, 32, 3}, {2, 640, 64, 0.5}};
  for (const std::vector<double>& loads :
       {std::vector<double>{0}, {0, 0, 0}, {0, 500}, {300, 0, 10, 1000}, std::vector<double>(40)}) {
    const auto runs = deal_rows(matrices, loads);
    std::vector<int64_t> next(matrices.size(), 0);
    int owner = 0;
    for (const auto& run : runs) {
      EXPECT_EQ(run.first, next[run.problem]);
      EXPECT_EQ(run.first % matrices[run.problem].tile, 0);
      EXPECT_GE(run.owner, owner);
      owner = run.owner;
      next[run.problem] += run.rows;
    }
    EXPECT_LT(owner, static_cast<int>(loads.size()));
    for (const auto& matrix : matrices) EXPECT_EQ(next[matrix.problem], matrix.rows);
  }
}

TEST(DealRows, WhoHasMoreToDoBesideGetsLess) {
  // 1,280 rows of cost 1 and loads of 640: 3 ranks come to 640 each, to a tile.
  const std::vector<RowsToDeal> matrices{{0, 1280, 32, 1}};
  EXPECT_LE(largest_share(deal_rows(matrices, {640, 0, 0}), {640, 0, 0}, 1), 640 + 32);
  EXPECT_LE(largest_share(deal_rows(matrices, {0, 0, 640}), {0, 0, 640}, 1), 640 + 32);
  // A load above all that the others can have: none of the rows.
  for (const auto& run : deal_rows(matrices, {0, 0, 2000})) EXPECT_LT(run.owner, 2);
}

TEST(SolvePace, IsThatOfAllRanksAndKeepsToBounds) {
  const Communicator world = Communicator::world();
  if (world.size() == 1) GTEST_SKIP() << "nobody to deal with";
  SolvePace pace;
  EXPECT_EQ(pace.controls_a_factor(), 1);
  if (world.rank() == 0) pace.note_factors(100, 0.004);
  pace.share(world);
  EXPECT_EQ(pace.controls_a_factor(), 1) << "no controls yet";
  if (world.rank() == 1) pace.note_controls(1000, 0.010);
  pace.share(world);
  EXPECT_NEAR(pace.controls_a_factor(), 4, 1e-9);
  pace.note_controls(1000, 10);
  pace.share(world);
  EXPECT_EQ(pace.controls_a_factor(), 1.0 / 8);
}

/// Layers that read three inputs, one of them twice with other settings.
class TeamSolves : public testing::Test {
 protected:
  static void SetUpTestSuite() { kernels::use_one_library_thread(); }

  void add(int tap, const std::string& name, int64_t rows, int64_t columns, double damping = 0.01) {
    at::manual_seed(tap);
    const at::Tensor x = at::randn({2 * columns, columns}) + at::randn({2 * columns, 1});
    at::Tensor hessian = at::matmul(x.t(), x).div_(2 * columns).contiguous();
    hessian = ((hessian + hessian.t()) / 2).contiguous();
    statistics[tap] = {hessian, hessian.diagonal().contiguous(), {}};
    MethodSettings settings;
    settings.group_size = 16;
    settings.damping = damping;
    problems[tap].push_back({name, at::randn({rows, columns}), settings});
  }

  std::map<std::string, CompressedLinear> solve(const Communicator& team) {
    return solve_together({team, timer, pace, {&pool, {}}}, problems, statistics, shared,
                          [&] { ++groups; });
  }

  void expect_same(const std::map<std::string, CompressedLinear>& found,
                   const std::map<std::string, CompressedLinear>& expected) {
    ASSERT_EQ(found.size(), expected.size());
    for (const auto& [name, linear] : expected) {
      EXPECT_TRUE(found.at(name).weight.equal(linear.weight)) << name;
      EXPECT_TRUE(found.at(name).codes.equal(linear.codes)) << name;
      EXPECT_TRUE(found.at(name).scale.equal(linear.scale)) << name;
      EXPECT_EQ(found.at(name).loss, linear.loss) << name;
      EXPECT_EQ(found.at(name).nearest_error, linear.nearest_error) << name;
      EXPECT_EQ(found.at(name).damping, linear.damping) << name;
    }
  }

  /// Ranks that have spent time on a factor since the last time.
  std::vector<bool> finders() {
    const double seconds = timer.seconds()[static_cast<size_t>(Phase::factorise)];
    std::vector<int64_t> found(static_cast<size_t>(world.size()), 0);
    found[static_cast<size_t>(world.rank())] = seconds > seconds_before;
    seconds_before = seconds;
    world.all_reduce(std::span(found), ReduceOp::sum);
    return {found.begin(), found.end()};
  }

  const Communicator world = Communicator::world();
  ThreadPool pool{1, kernels::use_one_library_thread};
  TapProblems problems;
  std::map<int, TapStatistics> statistics;
  std::map<int, SharedFactors> shared;
  PhaseTimer timer;
  SolvePace pace;
  double seconds_before = 0;
  int groups = 0;
};

TEST_F(TeamSolves, InputsKnownAtOnceAreFactorisedByDifferentRanks) {
  add(0, "q", 70, 48);
  add(0, "k", 33, 48, 0.05);
  add(1, "gate", 130, 64);
  add(2, "down", 48, 160);
  const auto expected = solve(Communicator::local());
  EXPECT_EQ(groups, 4);
  finders();
  expect_same(solve(world), expected);
  EXPECT_EQ(finders(), std::vector<bool>(static_cast<size_t>(world.size()), true));
}

TEST_F(TeamSolves, OneFactorIsNotForTheRankThatReadsAndWrites) {
  add(0, "q", 70, 48);
  add(0, "k", 33, 48);
  const auto expected = solve(Communicator::local());
  finders();
  expect_same(solve(world), expected);
  std::vector<bool> last(static_cast<size_t>(world.size()), false);
  last.back() = true;
  EXPECT_EQ(finders(), last);
}

TEST_F(TeamSolves, AWideFactorIsDealtToAllRanks) {
  add(0, "down", 40, 1100);
  const auto expected = solve(Communicator::local());
  finders();
  expect_same(solve(world), expected);
  EXPECT_EQ(finders(), std::vector<bool>(static_cast<size_t>(world.size()), true));
}

TEST_F(TeamSolves, AWideFactorThatTakesMoreDampingComesFromOneRank) {
  add(0, "down", 40, 1100);
  statistics[0].hessian[0][1] = statistics[0].hessian[1][0] =
      1.1 * statistics[0].hessian.diagonal().max().item<float>();
  const auto expected = solve(Communicator::local());
  EXPECT_GT(expected.at("down").damping_retries, 0);
  expect_same(solve(world), expected);
}

TEST_F(TeamSolves, AFactorThatIsAskedForAgainIsThere) {
  add(0, "q", 70, 48);
  for (int use = 0; use < 2; ++use) shared[0].expect(factor_settings(problems[0][0].settings));
  const auto expected = solve(world);
  finders();
  expect_same(solve(world), expected);
  EXPECT_EQ(finders(), std::vector<bool>(static_cast<size_t>(world.size()), false));
}

TEST_F(TeamSolves, AFactorThatCannotBeFoundFailsOnAllRanks) {
  add(0, "q", 70, 48);
  add(1, "down", 48, 160);
  statistics[0].hessian = -at::eye(48);
  EXPECT_THROW(solve(world), AgreedError);
}

}  // namespace
}  // namespace selfcal
