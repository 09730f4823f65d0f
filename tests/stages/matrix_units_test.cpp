// Products of bfloat16 by the processor's matrix units, against float64 references and each other.
#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "stages/kernels/cpu/few_rows.hpp"
#include "stages/kernels/cpu/tiled_linear.hpp"
#include "stages/kernels/cpu/unit_linear.hpp"
#include "tests/stages/kernels_support.hpp"

namespace selfcal::kernels {
namespace {

void expect_products_of_panels(const MatrixUnits* units) {
  at::manual_seed(7);
  for (const int64_t rows : {1, 15, 16, 17, 32, 45, 100})
    for (const int64_t tokens : {1, 31, 32, 70}) {
      const int64_t depth = padded_depth(tokens), columns = 29, stride = depth + 32;
      const at::Tensor a = at::zeros({rows, stride}, at::kBFloat16),
                       x = random({tokens, columns + 4}, at::kBFloat16);
      a.narrow(1, 0, depth).copy_(random({rows, depth}, at::kBFloat16));
      const at::Tensor panel = at::empty({depth / 2, MatrixUnits::panel_columns}, at::kInt),
                       c = at::full({rows, 40}, 5.0f);
      units->pack_columns(static_cast<const uint16_t*>(x.const_data_ptr()) + 3, columns + 4, tokens,
                          columns, panel.mutable_data_ptr<int32_t>());
      const auto multiply = [&](int64_t first, int64_t count, bool accumulate) {
        units->multiply(rows, count, static_cast<const uint16_t*>(a.const_data_ptr()) + first,
                        stride,
                        panel.const_data_ptr<int32_t>() + first / 2 * MatrixUnits::panel_columns,
                        c.mutable_data_ptr<float>(), 40, accumulate, nullptr);
      };
      multiply(0, depth, false);
      const at::Tensor expected =
          wide(a).narrow(1, 0, tokens).matmul(wide(x).narrow(1, 3, columns));
      const at::Tensor found = c.narrow(1, 0, columns).clone();
      EXPECT_TRUE(at::allclose(wide(found), expected, 1e-5, 1e-5)) << rows << " " << tokens;
      EXPECT_EQ(c.narrow(1, columns, 32 - columns).abs().max().item<float>(), 0);
      EXPECT_TRUE(c.narrow(1, 32, 8).eq(5).all().item<bool>());
      units->multiply_half(rows, depth, static_cast<const uint16_t*>(a.const_data_ptr()), stride,
                           panel.const_data_ptr<int32_t>(), c.mutable_data_ptr<float>(), 40, false,
                           nullptr);
      EXPECT_TRUE(at::equal(found.narrow(1, 0, 16), c.narrow(1, 0, 16))) << "one half";
      if (depth == 32) continue;
      multiply(0, 32, false);
      multiply(32, depth - 32, true);
      EXPECT_TRUE(at::equal(found, c.narrow(1, 0, columns))) << "cut in two";
    }
}

TEST(MatrixUnits, MultiplyPanels) {
  if (!matrix_units()) GTEST_SKIP() << "this processor has none";
  for (int rank = 0; const MatrixUnits* units = supported_units(rank); ++rank) {
    SCOPED_TRACE(units->name);
    expect_products_of_panels(units);
  }
}

/// Numbers whose every four along the last dimension have at most two that are not zero.
at::Tensor two_of_four(at::IntArrayRef sizes) {
  const at::Tensor x = random(sizes, at::kBFloat16), fours = x.unflatten(-1, {-1, 4});
  const at::Tensor kept = at::rand(fours.sizes()).argsort(-1, false);
  fours.mul_(kept < 2);                       // zeros of both signs
  fours.mul_(at::rand(fours.sizes()) < 0.9);  // some have less than two
  return x;
}

/// Panels that leave out zeros, of a matrix that has some others, have the bits of those that do
/// not.
TEST(MatrixUnits, LeaveOutZeros) {
  if (!matrix_units()) GTEST_SKIP() << "this processor has none";
  at::manual_seed(9);
  for (int rank = 0; const MatrixUnits* units = supported_units(rank); ++rank) {
    if (units->keep_two_of_four == nullptr) continue;
    MatrixUnits all = *units;
    all.keep_two_of_four = nullptr;
    for (const int64_t inputs : {4, 36, 576, 3200}) {
      const at::Tensor x = random({77, inputs}, at::kBFloat16), weight = two_of_four({109, inputs});
      weight.select(0, 40).fill_(1);  // of the second panel
      const auto multiply = [&](const MatrixUnits& by) {
        at::Tensor y = at::empty({77, 109}, at::kFloat);
        multiply_by_units({}, by,
                          {matrix_of(x), matrix_of(weight), matrix_of({}), y.mutable_data_ptr(),
                           Number::float32});
        return y;
      };
      const at::Tensor found = multiply(*units);
      EXPECT_TRUE(at::equal(found, multiply(all))) << inputs;
      EXPECT_TRUE(at::allclose(wide(found), at::linear(wide(x), wide(weight)), 1e-5, 1e-4));
    }
  }
}

/// A panel with three numbers in one four stays as it is.
TEST(MatrixUnits, KeepAllNumbersWhereThereAreMoreThanTwo) {
  if (!matrix_units()) GTEST_SKIP() << "this processor has none";
  for (int rank = 0; const MatrixUnits* units = supported_units(rank); ++rank) {
    if (units->keep_two_of_four == nullptr) continue;
    for (int64_t without = 0; without < 4; ++without) {
      const at::Tensor panel = at::zeros({32, MatrixUnits::panel_columns, 2}, at::kBFloat16);
      for (int64_t k = 0; k < 4; ++k)
        if (k != without) panel.select(0, 20 + k / 2).select(0, 31).select(0, k % 2).fill_(3);
      const at::Tensor before = panel.clone();
      EXPECT_FALSE(units->keep_two_of_four(64, static_cast<int32_t*>(panel.mutable_data_ptr())));
      EXPECT_TRUE(at::equal(panel, before));
      panel.select(0, 20 + (without + 1) % 4 / 2)
          .select(0, 31)
          .select(0, (without + 1) % 2)
          .zero_();
      EXPECT_TRUE(units->keep_two_of_four(64, static_cast<int32_t*>(panel.mutable_data_ptr())));
    }
  }
}

/// Decoding and teacher forcing multiply by the same code.
TEST(MatrixUnits, FewRowsAreAsMany) {
  if (!matrix_units()) GTEST_SKIP() << "this processor has none";
  at::manual_seed(8);
  const auto x = random({70, 96}, at::kBFloat16), weight = random({301, 96}, at::kBFloat16),
             bias = random({301}, at::kBFloat16);
  const auto many = linear_tiled({}, x, weight, bias, at::kFloat, Products::units);
  for (const int64_t rows : {1, 16, 32})
    EXPECT_TRUE(at::equal(linear_few_rows({}, x.narrow(0, 0, rows), weight, bias, at::kFloat),
                          many.narrow(0, 0, rows)));
}

}  // namespace
}  // namespace selfcal::kernels
