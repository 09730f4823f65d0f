// X^T X over leaves: equal to float64, and the same bits for any order, dealing and number of
// threads.
#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <limits>
#include <numeric>
#include <random>

#include "base/error.hpp"
#include "stages/calibrate/hessian.hpp"
#include "stages/calibrate/whole_products.hpp"

namespace selfcal {
namespace {

at::Tensor random_leaf(int seed, int64_t tokens, int64_t columns) {
  std::mt19937 engine(seed);
  std::normal_distribution<float> normal;
  at::Tensor x = at::empty({tokens, columns}, at::kFloat);
  float* data = x.data_ptr<float>();
  for (int64_t i = 0; i < x.numel(); ++i) {
    const int64_t column = i % columns;
    data[i] = normal(engine) * std::exp2(float(column % 17) - 8);  // columns of very different size
    if (column > 0 && column % 5 == 0) data[i] += 0.5f * data[i - 1];
  }
  return x;
}

std::vector<at::Tensor> random_leaves(int count, int64_t tokens, int64_t columns,
                                      at::ScalarType dtype = at::kFloat) {
  std::vector<at::Tensor> leaves;
  for (int i = 0; i < count; ++i) leaves.push_back(random_leaf(i, tokens + i, columns).to(dtype));
  return leaves;
}

/// The leaves dealt to `ranks` accumulators and reduced as MPI would reduce them.
at::Tensor accumulate(const std::vector<at::Tensor>& leaves, int ranks = 1, int threads = 1) {
  kernels::use_one_library_thread();
  ThreadPool pool(threads, kernels::use_one_library_thread);
  const int64_t columns = leaves.front().size(1);
  std::vector<HessianAccumulator> team;
  for (int rank = 0; rank < ranks; ++rank) team.emplace_back(columns, kernels::Context{&pool});
  int64_t tokens = 0;
  for (size_t i = 0; i < leaves.size(); ++i) {
    team[i % ranks].observe(leaves[i]);
    tokens += leaves[i].size(0);
  }
  std::vector<int32_t> largest(columns, std::numeric_limits<int32_t>::min());
  for (auto& rank : team) {
    for (int64_t i = 0; i < columns; ++i) largest[i] = std::max(largest[i], rank.exponents()[i]);
  }
  for (auto& rank : team) std::copy(largest.begin(), largest.end(), rank.exponents().begin());
  for (size_t i = 0; i < leaves.size(); ++i) team[i % ranks].add(leaves[i]);
  for (int rank = 1; rank < ranks; ++rank) {
    for (size_t i = 0; i < team[0].sums().size(); ++i) team[0].sums()[i] += team[rank].sums()[i];
  }
  return team[0].finish(tokens);
}

at::Tensor reference(const std::vector<at::Tensor>& leaves) {
  at::Tensor sum = at::zeros({leaves.front().size(1), leaves.front().size(1)}, at::kDouble);
  int64_t tokens = 0;
  for (const auto& leaf : leaves) {
    const at::Tensor x = leaf.to(at::kDouble);
    sum += x.t().mm(x);
    tokens += x.size(0);
  }
  return sum / tokens;
}

/// Largest error of an entry, relative to the size of its two columns.
double relative_error(const at::Tensor& found, const at::Tensor& expected) {
  const at::Tensor size = expected.diag().sqrt();
  return ((found.to(at::kDouble) - expected) / at::outer(size, size)).abs().max().item<double>();
}

bool same_bits(const at::Tensor& a, const at::Tensor& b) {
  return a.sizes() == b.sizes() &&
         std::memcmp(a.const_data_ptr(), b.const_data_ptr(), a.nbytes()) == 0;
}

/// Whole numbers have 15 bits below the norm of their column.
double tolerance(at::ScalarType dtype) {
  return product_code(dtype) == ProductCode::whole ? 1e-4 : 1e-6;
}

class HessianOf : public testing::TestWithParam<at::ScalarType> {};

TEST_P(HessianOf, AgreesWithFloat64) {
  for (const int64_t columns : {1, 5, 64, 300, 576}) {
    const auto leaves = random_leaves(3, 200, columns, GetParam());
    const at::Tensor hessian = accumulate(leaves, 1, 2);
    EXPECT_LT(relative_error(hessian, reference(leaves)), tolerance(GetParam())) << columns;
    EXPECT_TRUE(same_bits(hessian, hessian.t().contiguous()));
  }
}

TEST_P(HessianOf, IsTheSameForAnyOrderDealingAndThreads) {
  auto leaves = random_leaves(11, 64, 300, GetParam());
  const at::Tensor expected = accumulate(leaves);
  for (int ranks = 1; ranks <= 4; ++ranks)
    EXPECT_TRUE(same_bits(expected, accumulate(leaves, ranks))) << ranks;
  for (int threads : {2, 4})
    EXPECT_TRUE(same_bits(expected, accumulate(leaves, 2, threads))) << threads;
  std::mt19937 engine(1);
  for (int trial = 0; trial < 3; ++trial) {
    std::shuffle(leaves.begin(), leaves.end(), engine);
    EXPECT_TRUE(same_bits(expected, accumulate(leaves, 3, 2))) << trial;
  }
}

TEST_P(HessianOf, DoesNotDependOnAlignment) {
  const auto leaves = random_leaves(2, 50, 96, GetParam());
  std::vector<at::Tensor> shifted;
  for (const auto& leaf : leaves) {
    at::Tensor storage = at::empty({leaf.numel() + 1}, leaf.scalar_type());
    shifted.push_back(storage.narrow(0, 1, leaf.numel()).view(leaf.sizes()).copy_(leaf));
  }
  EXPECT_TRUE(same_bits(accumulate(leaves), accumulate(shifted)));
}

INSTANTIATE_TEST_SUITE_P(Dtypes, HessianOf, testing::Values(at::kFloat, at::kBFloat16),
                         [](const auto& dtype) { return std::string(c10::toString(dtype.param)); });

TEST(Hessian, EveryProductCodeAgrees) {
  ThreadPool pool(2, kernels::use_one_library_thread);
  const at::Tensor x = random_leaf(1, 300, 500).to(at::kBFloat16);
  const at::Tensor expected = x.to(at::kDouble).t().mm(x.to(at::kDouble));
  const at::Tensor size = expected.diag().sqrt();
  for (const auto code : {ProductCode::lanes, product_code(at::kBFloat16)}) {
    if (code == ProductCode::whole) continue;  // (the next test's)
    const LeafProducts products(x, code, {&pool});
    // Strips 10 to 12 (columns 320 to 416) with the columns of the second tile, 384 to 500.
    const ProductTile tile = products(10, 3, 384, 116);
    for (int64_t strip = 10; strip < 13; ++strip) {
      for (int64_t j = std::max<int64_t>(384, 32 * strip); j < 500; ++j) {
        for (int64_t r = 0; r < 32; ++r) {
          const double error = tile.sign * tile.at(strip - 10, j - 384)[r] -
                               expected[32 * strip + r][j].item<double>();
          ASSERT_LT(std::abs(error) / (size[32 * strip + r] * size[j]).item<double>(), 1e-6)
              << strip << " " << j;
        }
      }
    }
  }
}

TEST(Hessian, WholeNumbersAgreeWithFloat64) {
  ThreadPool pool(2, kernels::use_one_library_thread);
  const at::Tensor x = random_leaf(1, 301, 500).to(at::kBFloat16);
  HessianAccumulator accumulator(500, {&pool});
  accumulator.observe(x);
  const auto exponents = accumulator.exponents();
  const at::Tensor expected = x.to(at::kDouble).t().mm(x.to(at::kDouble));
  const at::Tensor size = expected.diag().sqrt();
  const WholeProducts products(x, exponents, {&pool});
  std::vector<int32_t> tile(116 * 32);
  products.add(416, 384, 116, tile.data());  // columns 416 to 448 with columns 384 to 500
  for (int64_t j = 416; j < 500; ++j)
    for (int64_t i = 416; i < 448 && i <= j; ++i) {
      const double found = std::ldexp(double(tile[(j - 384) * 32 + i - 416]),
                                      exponents[i] + exponents[j] - 2 * whole_bits);
      ASSERT_LT(
          std::abs(found - expected[i][j].item<double>()) / (size[i] * size[j]).item<double>(),
          1e-4)
          << i << " " << j;
    }
}

TEST(Hessian, LeavesOfBfloat16ThatWereNotObservedAreRefused) {
  ThreadPool pool(1);
  HessianAccumulator accumulator(4, {&pool});
  const at::Tensor leaf = random_leaf(1, 10, 4).to(at::kBFloat16);
  accumulator.observe(leaf);
  EXPECT_THROW(accumulator.add(leaf * 64), Error);
}

TEST(Hessian, KeepsSmallEntriesBesideLargeColumns) {
  // Two nearly orthogonal columns, 2^60 apart: the small column's entries keep their float32
  // precision.
  auto leaves = random_leaves(4, 100, 3);
  for (auto& leaf : leaves) leaf.select(1, 1).mul_(std::exp2(60.0));
  EXPECT_LT(relative_error(accumulate(leaves), reference(leaves)), 1e-6);
}

TEST(Hessian, ZeroColumnsAndTinyValues) {
  auto leaves = random_leaves(3, 40, 8);
  for (auto& leaf : leaves) {
    leaf.select(1, 2).zero_();
    leaf.select(1, 3).fill_(1e-42f);  // denormal; its square is zero in float32
    leaf.select(1, 4).mul_(1e-18f);
  }
  leaves[1].select(1, 5).zero_();
  const at::Tensor hessian = accumulate(leaves, 2), expected = reference(leaves);
  EXPECT_TRUE(hessian.isfinite().all().item<bool>());
  EXPECT_EQ(hessian.select(0, 2).abs().max().item<float>(), 0);
  EXPECT_EQ(hessian[3][3].item<float>(), 0);
  EXPECT_NEAR(hessian[4][4].item<float>() / expected[4][4].item<double>(), 1, 1e-6);
  EXPECT_NEAR(hessian[5][5].item<float>() / expected[5][5].item<double>(), 1, 1e-6);
}

TEST(Hessian, ManyLeavesDoNotOverflow) {
  ThreadPool pool(1);
  HessianAccumulator accumulator(2, {&pool});
  const at::Tensor leaf = at::full({1, 2}, 3.0f);
  accumulator.observe(leaf);
  for (int i = 0; i < 1 << 17; ++i) accumulator.add(leaf);
  EXPECT_EQ(accumulator.finish(1 << 17)[0][1].item<float>(), 9.0f);
}

void expect_failure(ExitCode code, const std::string& text, const std::function<void()>& action) {
  try {
    action();
    ADD_FAILURE() << "expected: " << text;
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), code);
    EXPECT_NE(std::string(error.what()).find(text), std::string::npos) << error.what();
  }
}

TEST(Hessian, RefusesWhatIsNotFinite) {
  ThreadPool pool(2);
  for (const float bad : {std::nanf(""), INFINITY, -INFINITY}) {
    HessianAccumulator accumulator(100, {&pool});
    at::Tensor leaf = random_leaf(1, 10, 100);
    leaf[3][70] = bad;
    expect_failure(ExitCode::data, "activation not finite", [&] { accumulator.observe(leaf); });
  }
  HessianAccumulator accumulator(100, {&pool});
  expect_failure(ExitCode::data, "too large", [&] {
    accumulator.observe(at::full({2, 100}, 3e38f));
  });
}

TEST(Hessian, RefusesLeavesThatWereNotObserved) {
  ThreadPool pool(1);
  HessianAccumulator accumulator(4, {&pool});
  accumulator.observe(random_leaf(1, 10, 4));
  expect_failure(ExitCode::internal, "larger than any",
                 [&] { accumulator.add(random_leaf(1, 10, 4) * 64); });
  expect_failure(ExitCode::internal, "expected contiguous",
                 [&] { accumulator.add(random_leaf(1, 10, 5)); });
  expect_failure(ExitCode::internal, "no tokens", [&] { accumulator.finish(0); });
}

}  // namespace
}  // namespace selfcal
