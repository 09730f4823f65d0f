// The inner loops of every instruction set that this processor has, against float64 references.
#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cmath>

#include "stages/kernels/cpu/few_rows.hpp"
#include "stages/kernels/cpu/matrix.hpp"
#include "stages/kernels/cpu/matrix_units.hpp"
#include "stages/kernels/cpu/tiled_linear.hpp"
#include "tests/stages/kernels_support.hpp"

namespace selfcal::kernels {
namespace {

constexpr int64_t lengths[] = {1, 7, 8, 31, 64, 100};

void for_sets(const std::function<void(const VectorKernels&)>& body) {
  use_one_library_thread();
  at::manual_seed(3);
  for (int rank = 0; const auto* vectors = supported_kernels(rank); ++rank) {
    SCOPED_TRACE(vectors->name);
    body(*vectors);
  }
}

void expect_near(const at::Tensor& found, const at::Tensor& expected) {
  const double error =
      ((found.to(at::kDouble) - expected).abs() / (expected.abs() + 1e-2)).max().item<double>();
  EXPECT_LT(error, found.scalar_type() == at::kFloat ? 4e-6 : 0x1p-7);
}

/// As near as terms of about `size` that cancel allow.
void expect_near(const at::Tensor& found, const at::Tensor& expected, double size) {
  const double error = (found.to(at::kDouble) - expected).abs().max().item<double>();
  EXPECT_LT(error, size * (found.scalar_type() == at::kFloat ? 1e-6 : 0x1p-8));
}

TEST(VectorLoops, WidenAndNarrow) {
  for_sets([](const VectorKernels& vectors) {
    for (const auto dtype : dtypes)
      for (const int64_t n : lengths) {
        const auto x = random({n}, dtype), bias = random({n}, dtype);
        const auto y = at::empty({n}), z = at::empty({n}, dtype);
        vectors.widen(x.const_data_ptr(), number_of(x), n, 0.5f, y.mutable_data_ptr<float>());
        EXPECT_TRUE(at::equal(y, x.to(at::kFloat) * 0.5));
        vectors.narrow(y.const_data_ptr<float>(), nullptr, Number::float32, n, 2,
                       z.mutable_data_ptr(), number_of(z));
        EXPECT_TRUE(at::equal(z, x));
        vectors.narrow(y.const_data_ptr<float>(), bias.const_data_ptr(), number_of(bias), n, 2,
                       z.mutable_data_ptr(), number_of(z));
        expect_near(z, wide(x) + wide(bias));
      }
  });
}

TEST(VectorLoops, ElementwiseArithmetic) {
  for_sets([](const VectorKernels& vectors) {
    for (const auto dtype : dtypes)
      for (const int64_t n : lengths) {
        const auto a = random({n}, dtype) * 4, b = random({n}, dtype), y = at::empty({n}, dtype);
        vectors.add(a.const_data_ptr(), b.const_data_ptr(), number_of(a), n, y.mutable_data_ptr());
        expect_near(y, wide(a) + wide(b));
        vectors.activate(Activation::silu, a.const_data_ptr(), b.const_data_ptr(), number_of(a), n,
                         y.mutable_data_ptr());
        expect_near(y, wide(a) * wide(a).sigmoid() * wide(b));
        vectors.activate(Activation::gelu, a.const_data_ptr(), nullptr, number_of(a), n,
                         y.mutable_data_ptr());
        expect_near(y, 0.5 * wide(a) * (1 + (wide(a) / std::sqrt(2.0)).erf()), 16);
        vectors.layer_norm_row(a.const_data_ptr(), b.const_data_ptr(), b.const_data_ptr(),
                               number_of(a), n, 1e-5f, y.mutable_data_ptr());
        const auto centred = wide(a) - wide(a).mean();
        expect_near(y, centred * ((centred * centred).mean() + 1e-5).rsqrt() * wide(b) + wide(b),
                    16);
        vectors.rms_norm_row(a.const_data_ptr(), b.const_data_ptr(), number_of(a), n, 1e-5f, 1,
                             y.mutable_data_ptr());
        expect_near(y, wide(a) * ((wide(a) * wide(a)).mean() + 1e-5).rsqrt() * (1 + wide(b)));
      }
  });
}

TEST(VectorLoops, RotationTurnsPairs) {
  for_sets([](const VectorKernels& vectors) {
    for (const auto dtype : dtypes)
      for (const int64_t half : {1, 6, 8, 20, 32}) {
        const auto x = random({2 * half + 3}, dtype), angle = at::randn({half});
        const auto y = x.clone(), cosine = angle.cos(), sine = angle.sin();
        vectors.rotate_head(y.mutable_data_ptr(), number_of(y), cosine.const_data_ptr<float>(),
                            sine.const_data_ptr<float>(), half);
        const auto a = wide(x).slice(0, 0, half), b = wide(x).slice(0, half, 2 * half);
        expect_near(y, at::cat({a * wide(cosine) - b * wide(sine),
                                b * wide(cosine) + a * wide(sine), wide(x).slice(0, 2 * half)}));
      }
  });
}

TEST(VectorLoops, WeightsOfASoftmax) {
  for_sets([](const VectorKernels& vectors) {
    for (const int64_t visible : {0, 1, 5, 8, 29, 64}) {
      const auto scores = at::randn({64}) * 5, weights = scores.clone();
      const float floor = 0.5;
      float total = -1;
      const float largest =
          vectors.weigh(weights.mutable_data_ptr<float>(), visible, 64, floor, &total);
      const auto seen = scores.slice(0, 0, visible);
      EXPECT_EQ(largest, at::cat({seen, at::full({1}, floor)}).max().item<float>());
      if (visible) expect_near(weights.slice(0, 0, visible), (wide(seen) - largest).exp());
      EXPECT_NEAR(total, (wide(seen) - largest).exp().sum().item<double>(), 1e-5);
      EXPECT_EQ(weights.slice(0, visible).abs().sum().item<float>(), 0);
    }
  });
}

TEST(VectorLoops, InfinityAndNaNAreFoundAnywhere) {
  for_sets([](const VectorKernels& vectors) {
    for (const float bad : {NAN, INFINITY, -INFINITY})
      for (const int64_t place : {0, 50, 99}) {
        auto x = at::randn({100}) * 1e30;
        EXPECT_TRUE(vectors.all_finite32(static_cast<const uint32_t*>(x.const_data_ptr()), 100,
                                         0x7f800000));
        x[place] = bad;
        EXPECT_FALSE(vectors.all_finite32(static_cast<const uint32_t*>(x.const_data_ptr()), 100,
                                          0x7f800000));
        const auto y = x.to(at::kBFloat16);
        EXPECT_FALSE(
            vectors.all_finite16(static_cast<const uint16_t*>(y.const_data_ptr()), 100, 0x7f80));
      }
  });
}

TEST(VectorProducts, PanelsEqualReference) {
  for_sets([](const VectorKernels& vectors) {
    const int64_t panel = 2 * vectors.width;
    for (const int64_t rows : {1, 5, 6, 12, 25})
      for (const int64_t depth : {1, 64, 101}) {
        const auto a = at::randn({rows, depth + 3}), b = at::randn({depth, panel}),
                   c = at::randn({rows, panel + 5});
        const auto before = c.clone();
        const auto product = at::matmul(wide(a.slice(1, 0, depth)), wide(b));
        const auto multiply = [&](bool accumulate) {
          vectors.multiply_panel(rows, depth, a.const_data_ptr<float>(), depth + 3,
                                 b.const_data_ptr<float>(), c.mutable_data_ptr<float>(), panel + 5,
                                 accumulate);
        };
        multiply(true);
        EXPECT_TRUE(at::allclose(wide(c.slice(1, 0, panel)), product + before.slice(1, 0, panel),
                                 1e-5, 1e-5));
        multiply(false);
        EXPECT_TRUE(at::allclose(wide(c.slice(1, 0, panel)), product, 1e-5, 1e-5));
        EXPECT_TRUE(at::equal(c.slice(1, panel), before.slice(1, panel)));
      }
  });
}

TEST(VectorProducts, SplitMakesPanelsOfColumns) {
  for_sets([](const VectorKernels& vectors) {
    const int64_t panel = 2 * vectors.width;
    for (const auto dtype : dtypes)
      for (const int64_t count : {1, 20, 64}) {
        const auto x = random({9, 80}, dtype);
        const int64_t panels = (count + panel - 1) / panel;
        const auto found = at::full({panels, 9, panel}, NAN);
        vectors.split(matrix_of(x), 3, count, found.mutable_data_ptr<float>());
        auto expected = at::zeros({9, panels * panel});
        expected.slice(1, 0, count).copy_(x.slice(1, 3, 3 + count));
        EXPECT_TRUE(at::equal(found, expected.view({9, panels, panel}).transpose(0, 1)));
      }
  });
}

TEST(WholeNumbers, ProductsAreExact) {
  for_sets([](const VectorKernels& vectors) {
    for (const auto dtype : dtypes)
      for (const auto& [rows, columns, n] :
           std::vector<std::array<int64_t, 3>>{{1, 1, 1}, {7, 5, 33}, {25, 8, 64}, {12, 3, 100}}) {
        const int64_t stride = whole_row(n, vectors.width), panel_columns = 2 * vectors.width;
        const auto a = random({rows, n}, dtype), b = random({columns, n}, dtype);
        const auto whole = [&](const at::Tensor& from, at::Tensor& steps) {
          at::Tensor to = at::empty({from.size(0), stride}, at::kShort);
          steps = at::zeros({32});
          for (int64_t i = 0; i < from.size(0); ++i)
            steps[i] = vectors.to_whole(from[i].const_data_ptr(), number_of(from), n,
                                        to[i].mutable_data_ptr<int16_t>());
          return to;
        };
        at::Tensor a_steps, b_steps;
        const at::Tensor a_whole = whole(a, a_steps), b_whole = whole(b, b_steps);
        // Each number is off by half a step at most, and the last bits are used.
        const auto back = wide(a_whole.narrow(1, 0, n)) * wide(a_steps.narrow(0, 0, rows))[0];
        EXPECT_LT((wide(a[0]) - back[0]).abs().max().item<double>(),
                  0.501 * a_steps[0].item<double>());
        EXPECT_GT(a_whole[0].abs().to(at::kDouble).norm().item<double>(), 32700);

        const int64_t pairs = stride / 2;
        at::Tensor packed = at::empty({pairs, vectors.whole_rows}, at::kInt),
                   a_panel = at::empty({pairs, panel_columns}, at::kInt),
                   panel = at::empty_like(a_panel),
                   sums = at::full({rows, panel_columns}, 3, at::kInt);
        vectors.pack_whole_panel(b_whole.const_data_ptr<int16_t>(), stride, columns, pairs,
                                 panel.mutable_data_ptr<int32_t>());
        const auto multiply = [&](const at::Tensor& packed_a, int64_t first, bool accumulate) {
          vectors.multiply_whole(
              std::min(packed_a.size(1), rows - first), pairs, packed_a.const_data_ptr<int32_t>(),
              packed_a.size(1), panel.const_data_ptr<int32_t>(),
              sums[first].mutable_data_ptr<int32_t>(), panel_columns, accumulate);
        };
        const auto multiply_packed_rows = [&] {
          for (int64_t i = 0; i < rows; i += vectors.whole_rows) {
            vectors.pack_whole_rows(a_whole[i].const_data_ptr<int16_t>(), stride,
                                    std::min(vectors.whole_rows, rows - i), pairs,
                                    packed.mutable_data_ptr<int32_t>());
            multiply(packed, i, false);
          }
        };
        multiply_packed_rows();
        for (int64_t i = 0; i < rows; i += panel_columns) {
          vectors.pack_whole_panel(a_whole[i].const_data_ptr<int16_t>(), stride,
                                   std::min(panel_columns, rows - i), pairs,
                                   a_panel.mutable_data_ptr<int32_t>());
          multiply(a_panel, i, true);
        }
        const at::Tensor product = a_whole.to(at::kLong).matmul(b_whole.to(at::kLong).t());
        // (Twice a product may leave 32 bits, and comes back.)
        EXPECT_TRUE(at::equal(sums.narrow(1, 0, columns), (2 * product).to(at::kInt)));
        EXPECT_EQ(sums.slice(1, columns).abs().sum().item<int64_t>(), 0);

        at::Tensor y = at::empty({rows, columns});
        multiply_packed_rows();
        for (int64_t i = 0; i < rows; ++i)
          vectors.narrow_whole(sums[i].const_data_ptr<int32_t>(), a_steps[i].item<float>(),
                               b_steps.const_data_ptr<float>(), nullptr, Number::float32, columns,
                               y[i].mutable_data_ptr<float>(), Number::float32);
        const double size = std::sqrt(static_cast<double>(n));
        EXPECT_LT((wide(y) - wide(a).matmul(wide(b).t())).abs().max().item<double>(), 1e-3 * size);
      }
  });
}

TEST(WholeNumbers, ColumnsBecomePanels) {
  for_sets([](const VectorKernels& vectors) {
    const int64_t tokens = 37, columns = vectors.width + 3, panel_columns = 2 * vectors.width;
    const int64_t row = whole_row(tokens, vectors.width);
    const auto x = random({tokens, columns + 5}, at::kBFloat16);
    const at::Tensor factors = at::full({panel_columns}, 1000.0f);
    at::Tensor panel = at::empty({row / 2, panel_columns, 2}, at::kShort);
    vectors.columns_to_whole(matrix_of(x), 2, columns, factors.const_data_ptr<float>(),
                             static_cast<int32_t*>(panel.mutable_data_ptr()));
    const at::Tensor expected = (x.to(at::kFloat) * 1000).round().to(at::kShort);
    for (int64_t i = 0; i < panel_columns; ++i)
      for (int64_t t = 0; t < row; ++t) {
        const int16_t number =
            i < columns && t < tokens ? expected[t][2 + i].item<int16_t>() : int16_t{0};
        ASSERT_EQ(panel[t / 2][i][t % 2].item<int16_t>(), number) << i << " " << t;
      }
    std::vector<double> squares(columns);
    vectors.sum_squares(matrix_of(x), 2, columns, squares.data());
    for (int64_t i = 0; i < columns; ++i)
      EXPECT_NEAR(squares[i] / wide(x).select(1, 2 + i).square().sum().item<double>(), 1, 1e-12);
    vectors.sum_sizes(matrix_of(x), 2, columns, squares.data());
    for (int64_t i = 0; i < columns; ++i) {
      double size = 0;
      for (int64_t t = 0; t < tokens; ++t) size += std::abs(x[t][2 + i].item<double>());
      EXPECT_EQ(squares[i], size) << i;
    }
  });
}

TEST(SplitInTwo, KeepsSixteenBits) {
  for_sets([](const VectorKernels& vectors) {
    const int64_t n = 2 * vectors.width + 3;
    const at::Tensor x = random({n}, at::kFloat), high = at::empty({n}, at::kBFloat16),
                     low = at::empty({n}, at::kBFloat16);
    vectors.split_in_two(x.const_data_ptr<float>(), n,
                         static_cast<uint16_t*>(high.mutable_data_ptr()),
                         static_cast<uint16_t*>(low.mutable_data_ptr()));
    EXPECT_TRUE(at::equal(high, x.to(at::kBFloat16)));
    EXPECT_LT(((wide(high) + wide(low) - wide(x)) / wide(x)).abs().max().item<double>(), 0x1p-17);
  });
}

/// All ways to multiply that this processor has.
std::vector<Products> products_of(at::ScalarType dtype) {
  std::vector<Products> all{Products::panels, Products::whole};
  if (dtype == at::kFloat) all.push_back(Products::library);
  if (dtype == at::kBFloat16 && matrix_units()) all.push_back(Products::units);
  return all;
}

TEST(TiledLinear, AllProductsAgree) {
  use_one_library_thread();
  at::manual_seed(4);
  ThreadPool pool(2, use_one_library_thread);
  for (const auto dtype : dtypes)
    for (const auto& [n, in, out] : std::vector<std::array<int64_t, 3>>{
             {33, 5, 3}, {300, 600, 290}, {530, 64, 800}, {40, 20000, 900}, {47, 2048, 40}}) {
      const auto x = random({n, in}, dtype), weight = random({out, in}, dtype),
                 bias = random({out}, dtype);
      const auto expected = at::linear(wide(x), wide(weight)) + wide(bias);
      for (const auto products : products_of(dtype)) {
        const auto found = linear_tiled({&pool}, x, weight, bias, at::kFloat, products);
        // (Units keep running sums, whose errors add up.)
        EXPECT_LT(((wide(found) - expected).abs().max() / expected.abs().max()).item<double>(),
                  products == Products::whole   ? 2e-5 * std::sqrt(double(in))
                  : products == Products::units ? 1e-6 * std::max(1.0, std::sqrt(double(in) / 1000))
                                                : 1e-6);
        ThreadPool one(1);
        EXPECT_TRUE(at::equal(found, linear_tiled({&one}, x, weight, bias, at::kFloat, products)));
      }
    }
}

TEST(TiledLinear, ARowDoesNotDependOnTheOthers) {
  at::manual_seed(5);
  const auto x = random({700, 600}, at::kBFloat16), weight = random({300, 600}, at::kBFloat16);
  for (const auto products : products_of(at::kBFloat16)) {
    const auto all = linear_tiled({}, x, weight, {}, at::kFloat, products);
    for (const auto& [first, count] :
         std::vector<std::pair<int64_t, int64_t>>{{0, 1}, {100, 300}, {690, 10}})
      EXPECT_TRUE(
          at::equal(linear_tiled({}, x.narrow(0, first, count), weight, {}, at::kFloat, products),
                    all.narrow(0, first, count)));
  }
}

}  // namespace
}  // namespace selfcal::kernels
