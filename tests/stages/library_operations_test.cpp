// What a GPU computes with, on host memory: each of the tensor library's operations beside our
// kernel for it.
#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "base/error.hpp"
#include "stages/calibrate/hessian.hpp"
#include "stages/kernels/operations.hpp"

namespace selfcal {
namespace {

using namespace kernels;

const Device library{at::kCPU, &library_operations};

class LibraryOperations : public testing::TestWithParam<at::ScalarType> {
 protected:
  static void SetUpTestSuite() { use_one_library_thread(); }
  void SetUp() override { at::manual_seed(7); }

  at::Tensor random(at::IntArrayRef shape, double size = 1) const {
    return (at::randn(shape) * size).to(GetParam());
  }

  /// Equal but for the order of float32 sums, and one rounding to the type.
  void expect_close(const at::Tensor& found, const at::Tensor& expected) const {
    ASSERT_EQ(found.scalar_type(), expected.scalar_type());
    ASSERT_EQ(found.sizes(), expected.sizes());
    const at::Tensor a = found.to(at::kDouble), b = expected.to(at::kDouble);
    const double rounding = expected.scalar_type() == at::kBFloat16 ? 0x1p-7 : 1e-5;
    const double scale = std::max(1e-30, b.square().mean().sqrt().item<double>());
    EXPECT_LE((a - b).abs().sub(b.abs() * rounding).max().item<double>(), rounding * scale);
  }

  /// `operation(context)` with our kernels and with the library's.
  template <class Operation>
  void compare(const Operation& operation) const {
    expect_close(operation(Context{nullptr, library}), operation(Context{}));
  }
};

TEST_P(LibraryOperations, Linear) {
  for (const int64_t rows : {1, 16, 77}) {
    const at::Tensor x = random({rows, 96}), weight = random({130, 96}), bias = random({130});
    compare([&](const Context& context) { return linear(context, x, weight); });
    compare([&](const Context& context) { return linear(context, x, weight, bias); });
    compare([&](const Context& context) { return linear(context, x, weight, bias, at::kFloat); });
  }
  // A head of more outputs than are widened at a time.
  const at::Tensor x = random({3, 16}), head = random({8192 + 40, 16});
  compare([&](const Context& context) { return linear(context, x, head, {}, at::kFloat); });
}

TEST_P(LibraryOperations, Norms) {
  const at::Tensor x = random({33, 80}, 3), weight = random({80}), bias = random({80});
  compare([&](const Context& context) { return rms_norm(context, x, weight, 1e-5, 1); });
  compare([&](const Context& context) { return rms_norm(context, x, weight, 1e-5); });
  compare([&](const Context& context) { return layer_norm(context, x + 5, weight, bias, 1e-5); });
}

TEST_P(LibraryOperations, Elementwise) {
  const at::Tensor x = random({5, 301}, 3), y = random({5, 301});
  for (const auto activation :
       {Activation::silu, Activation::gelu, Activation::gelu_tanh, Activation::relu}) {
    compare([&](const Context& context) { return activate(context, activation, x); });
    compare([&](const Context& context) { return activate(context, activation, x, y); });
  }
  compare([&](const Context& context) { return add(context, x, y); });
  compare([&](const Context& context) {
    at::Tensor capped = x.to(at::kFloat, false, /*copy=*/true) * 20;
    soft_cap(context, capped, 30);
    return capped;
  });
}

TEST_P(LibraryOperations, CrossEntropy) {
  const at::Tensor logits = random({9, 1000}, 4).to(at::kFloat),
                   targets = at::randint(1000, {9}, at::kLong);
  compare([&](const Context& context) { return cross_entropy(context, logits, targets); });
}

TEST_P(LibraryOperations, Rotate) {
  const at::Tensor heads = random({7, 3, 20}), positions = at::randint(40, {7}, at::kLong);
  for (const int64_t half : {10, 4}) {
    const at::Tensor angles = at::randn({40, half});
    compare([&](const Context& context) {
      at::Tensor x = heads.clone();
      rotate(context, x, positions, angles.cos(), angles.sin());
      return x;
    });
  }
}

TEST_P(LibraryOperations, CausalAttention) {
  const at::Tensor q = random({2, 300, 6, 24}), k = random({2, 300, 2, 24}),
                   v = random({2, 300, 2, 24});
  for (const AttentionLimits limits :
       {AttentionLimits{}, AttentionLimits{37, 0}, AttentionLimits{0, 2}, AttentionLimits{290, 5}})
    compare(
        [&](const Context& context) { return causal_attention(context, q, k, v, 0.3, limits); });
}

TEST_P(LibraryOperations, DecodeAttentionOverAFilledCache) {
  const at::Tensor positions = at::tensor({0, 17, 63}, at::kLong), q = random({3, 6, 24}),
                   key = random({3, 2, 24}), value = random({3, 2, 24});
  const at::Tensor old_keys = random({3, 2, 64, 24}), old_values = random({3, 2, 64, 24});
  for (const AttentionLimits limits :
       {AttentionLimits{}, AttentionLimits{9, 0}, AttentionLimits{0, 2}})
    compare([&](const Context& context) {
      at::Tensor keys = old_keys.clone(), values = old_values.clone();
      append(context, keys, positions, key);
      append(context, values, positions, value);
      return decode_attention(context, q, positions, keys, values, 0.3, limits);
    });
}

TEST_P(LibraryOperations, AppendWritesOneEntryOfEachSequence) {
  const at::Tensor positions = at::tensor({0, 17, 63}, at::kLong), rows = random({3, 2, 24});
  at::Tensor ours = random({3, 2, 64, 24}), theirs = ours.clone();
  append(Context{}, ours, positions, rows);
  append(Context{nullptr, library}, theirs, positions, rows);
  EXPECT_TRUE(at::equal(ours, theirs));
}

/// The Hessian of the leaves, dealt to `ranks`.
at::Tensor hessian_of(const std::vector<at::Tensor>& leaves, size_t ranks, const Device& device) {
  const int64_t columns = leaves.front().size(1);
  std::vector<HessianAccumulator> team;
  for (size_t rank = 0; rank < ranks; ++rank) team.emplace_back(columns, Context{nullptr, device});
  for (size_t i = 0; i < leaves.size(); ++i) team[i % ranks].observe(leaves[i]);
  std::vector<int32_t> exponents(static_cast<size_t>(columns), -1000);
  for (auto& rank : team)
    std::ranges::transform(rank.exponents(), exponents, exponents.begin(),
                           [](int32_t a, int32_t b) { return std::max(a, b); });
  int64_t tokens = 0;
  for (auto& rank : team) std::ranges::copy(exponents, rank.exponents().begin());
  for (size_t i = 0; i < leaves.size(); ++i) {
    team[i % ranks].add(leaves[i]);
    tokens += leaves[i].size(0);
  }
  for (size_t rank = 1; rank < ranks; ++rank)
    std::ranges::transform(team[rank].sums(), team[0].sums(), team[0].sums().begin(),
                           std::plus<>());
  return team[0].finish(tokens);
}

TEST_P(LibraryOperations, StatisticsAreCloseAndDoNotDependOnWhoHasTheLeaves) {
  for (const int64_t columns : {1, 45, 1100}) {
    std::vector<at::Tensor> leaves;
    for (int64_t i = 0; i < 5; ++i)
      leaves.push_back(random({40 + i, columns}) * at::arange(columns).remainder(3).to(GetParam()));
    const at::Tensor one = hessian_of(leaves, 1, library);
    EXPECT_TRUE(at::equal(one, hessian_of(leaves, 3, library)));
    std::ranges::reverse(leaves);
    EXPECT_TRUE(at::equal(one, hessian_of(leaves, 2, library)));
    const at::Tensor all = at::cat(leaves).to(at::kDouble);
    const at::Tensor exact = at::mm(all.t(), all) / static_cast<double>(all.size(0));
    EXPECT_LE((one.to(at::kDouble) - exact).abs().max().item<double>(),
              1e-6 * exact.abs().max().item<double>() + 1e-30);
  }
}

TEST_P(LibraryOperations, StatisticsRefuseWhatIsNotFinite) {
  at::Tensor x = random({4, 8});
  x[2][3] = INFINITY;
  HessianAccumulator accumulator(8, Context{nullptr, library});
  EXPECT_THROW(accumulator.observe(x), Error);
}

INSTANTIATE_TEST_SUITE_P(Dtypes, LibraryOperations, testing::Values(at::kFloat, at::kBFloat16),
                         [](const auto& tested) { return at::toString(tested.param); });

}  // namespace
}  // namespace selfcal
