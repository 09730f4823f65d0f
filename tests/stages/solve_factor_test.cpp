// The factor of the damped inverse: right, the same on any number of threads, and honest about what
// it had to do.
#include <gtest/gtest.h>

#include <atomic>
#include <barrier>
#include <cmath>

#include "base/gpu_module.hpp"
#include "stages/lanes/lanes.hpp"
#include "stages/solve/dealt_factor.hpp"
#include "stages/solve/factor.hpp"
#include "stages/solve/tiles.hpp"
#include "tests/stages/solve_support.hpp"
#include "tests/stages/team_of_threads.hpp"

namespace selfcal {
namespace {

using namespace testing_support;

/// Largest entry of U^T U c (H + damping) - 1, H in the order of the factor, c the power of four
/// that brings its mean diagonal between 1 and 4.
double residual(const Factor& factor, const at::Tensor& hessian) {
  at::Tensor h = hessian.to(at::kDouble)
                     .index_select(0, factor.permutation)
                     .index_select(1, factor.permutation);
  const double mean = h.diag().mean().item<double>();
  h.diagonal().add_(factor.damping * mean);
  h *= std::pow(4, -std::floor(std::log2(mean) / 2));
  const at::Tensor u = factor.upper.to(at::kDouble);
  return (u.t().mm(u).mm(h) - at::eye(h.size(0), at::kDouble)).abs().max().item<double>();
}

/// By our tiles, and by the tensor library as on a device.
class FactorBy : public testing::TestWithParam<bool> {
 protected:
  kernels::Context context() {
    return {&threads_.pool,
            {at::kCPU, GetParam() ? &kernels::library_operations : &kernels::cpu_operations}};
  }

 private:
  Threads threads_{2};
};

INSTANTIATE_TEST_SUITE_P(Code, FactorBy, testing::Bool(), [](const auto& chosen) {
  return std::string(chosen.param ? "library" : "tiles");
});

TEST_P(FactorBy, IsTheFactorOfTheInverse) {
  for (const int64_t columns : {1, 7, 64, 128, 129, 300, 500}) {
    const at::Tensor hessian = random_problem(1, 1, columns).hessian;
    const Factor factor = factorise_inverse(hessian, 0.01, 0, context());
    EXPECT_LT(residual(factor, hessian), 2e-3) << columns;
    EXPECT_EQ(factor.upper.tril(-1).abs().max().item<float>(), 0);
    EXPECT_GT(factor.upper.diag().min().item<float>(), 0);
    EXPECT_EQ(factor.retries, 0);
    EXPECT_EQ(factor.damping, 0.01);
  }
}

TEST(Factor, IsTheSameOnAnyNumberOfThreads) {
  const at::Tensor hessian = random_problem(2, 1, 700).hessian;
  Threads one(1);
  const Factor expected = factorise_inverse(hessian, 0.01, 1, one.context());
  for (const int count : {2, 3, 4}) {
    Threads threads(count);
    EXPECT_TRUE(
        same_bits(factorise_inverse(hessian, 0.01, 1, threads.context()).upper, expected.upper))
        << count;
  }
}

/// Found by many: with one tile and strip, with last ones that are narrow, with fewer than ranks.
TEST(DealtFactor, HasTheBitsOfTheWhole) {
  for (const int64_t columns : {7, 64, 130, 500, 704}) {
    const at::Tensor hessian = random_problem(7, 1, columns).hessian;
    MethodSettings settings;
    settings.damping = 0.02;
    Threads threads(2);
    const Factor whole = factorise_inverse(hessian, settings, threads.context());
    for (const int ranks : {1, 2, 3, 16}) {
      std::vector<std::optional<Factor>> joined(static_cast<size_t>(ranks));
      std::vector<std::span<std::byte>> found(joined.size());
      std::barrier meeting(ranks);
      TeamOfThreads(ranks).run([&](const FactorTeam& team) {
        Threads own(1 + team.rank % 2);
        const auto rank = static_cast<size_t>(team.rank);
        DealtFactor part(hessian, settings, team, own.context());
        EXPECT_TRUE(part.factorise());
        const auto parts = part.invert();
        found[rank] = parts[rank];
        meeting.arrive_and_wait();
        for (size_t other = 0; other < parts.size(); ++other)
          if (other != rank) std::ranges::copy(found[other], parts[other].begin());
        meeting.arrive_and_wait();  // theirs are gone when they have joined
        joined[rank] = part.join();
      });
      for (const auto& factor : joined) {
        ASSERT_TRUE(factor);
        EXPECT_TRUE(same_bits(factor->upper, whole.upper)) << columns << " columns, " << ranks;
        EXPECT_TRUE(factor->permutation.equal(whole.permutation));
        EXPECT_TRUE(factor->dead.equal(whole.dead));
        EXPECT_EQ(factor->damping, whole.damping);
      }
    }
  }
}

TEST(DealtFactor, GivesUpOnAllRanksWhereOneAttemptIsNotEnough) {
  at::Tensor hessian = at::eye(300) + 0.0f;
  hessian[150][151] = hessian[151][150] = 1.1f;  // found by the second of the ranks
  std::atomic<int> gave_up = 0;
  TeamOfThreads(3).run([&](const FactorTeam& team) {
    Threads own(1);
    gave_up += !DealtFactor(hessian, {}, team, own.context()).factorise();
  });
  EXPECT_EQ(gave_up, 3);
  Threads threads(1);
  expect_failure(ExitCode::data, "not finite",
                 [&] { DealtFactor(hessian * INFINITY, {}, {}, threads.context()); });
}

TEST_P(FactorBy, OrdersByDiagonalWithTiesByColumn) {
  const at::Tensor hessian =
      at::diag(at::tensor({1.0f, 3.0f, 2.0f, 3.0f, 0.0f, 2.0f})).contiguous();
  const Factor factor = factorise_inverse(hessian, 0.01, 1, context());
  EXPECT_TRUE(factor.permutation.equal(at::tensor({1, 3, 2, 5, 0, 4}, at::kLong)));
  EXPECT_TRUE(factor.dead.equal(at::tensor({0, 0, 0, 0, 1, 0}, at::kByte)));
}

TEST_P(FactorBy, DoesNotDependOnTheUnitOfTheHessian) {
  const at::Tensor hessian = random_problem(3, 1, 100).hessian;
  const Factor expected = factorise_inverse(hessian, 0.01, 0, context());
  for (const int power : {-110, -60, 60, 110}) {
    const Factor scaled = factorise_inverse(hessian * std::exp2(power), 0.01, 0, context());
    EXPECT_TRUE(same_bits(scaled.upper, expected.upper)) << power;
  }
}

TEST_P(FactorBy, RaisesTheDampingStepByStepAndSaysSo) {
  // A matrix whose least eigenvalue is -0.1 of its mean diagonal.
  at::Tensor hessian = at::eye(50) + 0.0f;
  hessian[0][1] = hessian[1][0] = 1.1f;
  const Factor factor = factorise_inverse(hessian, 0.01, 0, context());
  EXPECT_EQ(factor.retries, 4);
  EXPECT_DOUBLE_EQ(factor.damping, 0.16);
  EXPECT_LT(residual(factor, hessian), 1e-3);
  const Factor from_none = factorise_inverse(hessian, 0, 0, context());
  EXPECT_EQ(from_none.retries, 5);
  EXPECT_DOUBLE_EQ(from_none.damping, 0.16);
}

TEST_P(FactorBy, TriesFloat64BeforeMoreDamping) {
  // Positive definite, but not to float32: two columns that differ by 1e-5 of themselves.
  at::Tensor hessian = at::eye(4) + 0.0f;
  hessian[0][1] = hessian[1][0] = 1 - 0x1p-23f;
  const Factor factor = factorise_inverse(hessian, 0, 0, context());
  EXPECT_EQ(factor.retries, 0);
  EXPECT_LT(residual(factor, hessian), 1e-3);
}

TEST_P(FactorBy, RefusesWhatNoDampingCures) {
  expect_failure(ExitCode::data, "not positive definite",
                 [&] { factorise_inverse(-at::eye(8), 0.01, 0, context()); });
  at::Tensor coupled = at::eye(8) + 0.0f;
  coupled[2][3] = coupled[3][2] = 5;
  expect_failure(ExitCode::data, "not even with its mean diagonal added",
                 [&] { factorise_inverse(coupled, 0.01, 0, context()); });
  at::Tensor infinite = at::eye(8) + 0.0f;
  infinite[2][3] = INFINITY;
  expect_failure(ExitCode::data, "not finite",
                 [&] { factorise_inverse(infinite, 0.01, 0, context()); });
}

TEST(FactorByLibrary, IsThatOfTheTiles) {
  Threads threads(1);
  const kernels::Context library{&threads.pool, {at::kCPU, &kernels::library_operations}};
  at::Tensor hessian = random_problem(5, 1, 300).hessian;
  hessian.select(0, 17).zero_();
  hessian.select(1, 17).zero_();
  for (const int64_t run : {0, 1, 4}) {
    const Factor found = factorise_inverse(hessian, 0.01, run, library),
                 expected = factorise_inverse(hessian, 0.01, run, threads.context());
    EXPECT_TRUE(found.permutation.equal(expected.permutation)) << run;
    EXPECT_TRUE(found.dead.equal(expected.dead)) << run;
    const at::Tensor size = expected.upper.diagonal().unsqueeze(0);  // of a column's entries
    EXPECT_LT(((found.upper - expected.upper).abs() / size).max().item<float>(), 1e-3) << run;
  }
}

/// Of several tiles, where float32 loses a pivot.
TEST(FactorByLibrary, InFloat64IsThatOfTheTiles) {
  at::manual_seed(8);
  at::Tensor x = at::randn({1000, 300}, at::kDouble);
  x.select(1, 200).copy_(x.select(1, 60) + 6e-4 * at::randn({1000}, at::kDouble));
  const at::Tensor hessian = x.t().mm(x).div(1000).to(at::kFloat).contiguous();
  for (const int count : {1, 3}) {
    Threads threads(count);
    const kernels::Context library{&threads.pool, {at::kCPU, &kernels::library_operations}};
    const Factor found = factorise_inverse(hessian, 0, 0, threads.context()),
                 expected = factorise_inverse(hessian, 0, 0, library);
    EXPECT_EQ(found.retries, 0);
    EXPECT_EQ(expected.retries, 0);
    const at::Tensor size = expected.upper.diagonal().unsqueeze(0);
    EXPECT_LT(((found.upper - expected.upper).abs() / size).max().item<float>(), 1e-4) << count;
    EXPECT_GT(expected.upper.max().item<float>(), 500) << "a pivot that float32 keeps";
  }
}

/// Where there is a GPU: cuSOLVER's beside LAPACK's.
TEST(FactorByLibrary, OfAGpuIsThatOfTheHost) {
  if (const VisibleGpus visible = visible_gpus(); visible.count == 0)
    GTEST_SKIP() << visible.reason;
  load_cuda_tensors();
  Threads threads(1);
  const at::Tensor hessian = random_problem(6, 1, 700).hessian;
  const auto factor_on = [&](at::Device memory) {
    return factorise_inverse(hessian, 0.01, 1,
                             {&threads.pool, {memory, &kernels::library_operations}});
  };
  const Factor found = factor_on(at::kCUDA), expected = factor_on(at::kCPU);
  EXPECT_TRUE(found.permutation.equal(expected.permutation));
  const at::Tensor upper = found.upper.to(at::kCPU), size = expected.upper.diagonal().unsqueeze(0);
  EXPECT_LT(((upper - expected.upper).abs() / size).max().item<float>(), 1e-3);
  EXPECT_TRUE(same_bits(factor_on(at::kCUDA).upper.to(at::kCPU), upper));
}

}  // namespace
}  // namespace selfcal
