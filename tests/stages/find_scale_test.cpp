// The search for a clipping range, of every instruction set that this processor has: it must find
// what trying all of them in float64 finds.
#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "stages/solve/quantiser.hpp"
#include "tests/stages/solve_support.hpp"

namespace selfcal::lanes {
namespace {

using namespace testing_support;

/// tile: [columns, rows]. In no row may the range that is found be worse than the best.
void expect_least(int bits, bool symmetric, const at::Tensor& tile) {
  MethodSettings settings;
  settings.bits = bits;
  settings.symmetric = symmetric;
  settings.mse = AutoFlag::yes;
  const Grid grid = grid_of(settings, at::kFloat);
  const auto sets = available_kernels();
  for (int64_t set = 0; set < sets.count; ++set) {
    SCOPED_TRACE(sets.first[set]->instruction_set);
    float scale[rows], zero[rows];
    sets.first[set]->find_scale(grid, tile.const_data_ptr<float>(), tile.size(0), scale, zero);
    for (int64_t row = 0; row < rows; ++row) {
      const at::Tensor column = tile.select(1, row).contiguous();
      const std::vector<float> weights(column.const_data_ptr<float>(),
                                       column.const_data_ptr<float>() + column.numel());
      const GroupScale found{scale[row], zero[row]};
      double least = INFINITY;
      bool is_candidate = false;
      for (const GroupScale& candidate : tried_scales(weights, settings)) {
        least = std::min(least, distortion(weights, candidate, bits));
        is_candidate |= candidate.scale == found.scale && candidate.zero == found.zero;
      }
      EXPECT_TRUE(is_candidate) << "row " << row;
      EXPECT_LE(distortion(weights, found, bits), least * (1 + 2e-6)) << "row " << row;
    }
  }
}

TEST(FindScale, SearchesAsIfAllWereTried) {
  at::manual_seed(5);
  for (const bool symmetric : {true, false})
    for (const int bits : {2, 3, 4, 8})
      for (const int64_t columns : {1, 3, 16, 37, 64, 200}) {
        SCOPED_TRACE(testing::Message() << "symmetric " << symmetric << ", " << bits << " bits, "
                                        << columns << " columns");
        expect_least(bits, symmetric, at::randn({columns, rows}));
        expect_least(bits, symmetric, at::randn({columns, rows}).pow(3) * 1e-3f);  // long tails
        expect_least(bits, symmetric, at::rand({columns, rows}) + 0.5f);
      }
}

TEST(FindScale, AnOutlierIsCutOff) {
  at::manual_seed(6);
  at::Tensor tile = at::randn({128, rows});
  tile[17] = 8;
  expect_least(3, true, tile);
}

TEST(FindScale, RowsOfZerosAndOfOneSizeKeepTheirRange) {
  const Grid grid{.largest_code = 15, .search = true};
  const at::Tensor tile = at::zeros({64, rows});
  tile.select(1, 3).fill_(0.25f);
  float scale[rows], zero[rows];
  kernels().find_scale(grid, tile.const_data_ptr<float>(), 64, scale, zero);
  EXPECT_EQ(scale[0], 2.0f / 15);
  EXPECT_EQ(zero[0], 8);
  EXPECT_NEAR(std::nearbyint(0.25f / scale[3]) * scale[3], 0.25f, 2e-3);
}

/// Below what a power of 2.4 can hold, and above: something finite comes of it.
TEST(FindScale, SizesBeyondThePowersRange) {
  at::manual_seed(7);
  for (const float size : {1e-44f, 1e-38f, 1e-30f, 1e-10f, 1e10f, 1e14f, 1e30f}) {
    float scale[rows], zero[rows];
    const at::Tensor tile = at::randn({64, rows}) * size;
    kernels().find_scale({.largest_code = 15, .search = true}, tile.const_data_ptr<float>(), 64,
                         scale, zero);
    for (int64_t row = 0; row < rows; ++row) {
      const float largest = tile.select(1, row).abs().max().item<float>();
      EXPECT_LE(scale[row], std::max(2 * largest / 15 * 1.001f, 1e-44f)) << size;
      EXPECT_GE(scale[row], 0.2f * 2 * largest / 15) << size;
    }
  }
}

}  // namespace
}  // namespace selfcal::lanes
