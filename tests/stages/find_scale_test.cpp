// The search for a clipping range, of every instruction set that this processor has: it must find
// what trying all of them in float64 finds.
#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "stages/lanes/lanes.hpp"

namespace selfcal::lanes {
namespace {

constexpr int tried = 80;

/// Of one group, as find_scale returns it.
struct Found {
  float scale, zero;
};

/// sum |error|^2.4 of a row's weights in float64.
double distortion(const Grid& grid, const std::vector<double>& weights, const Found& found) {
  double sum = 0;
  for (const double weight : weights) {
    const double code =
        std::clamp<double>(std::nearbyint(weight / found.scale) + found.zero, 0, grid.largest_code);
    sum += std::pow(std::abs((code - found.zero) * found.scale - weight), 2.4);
  }
  return sum;
}

/// The scale and zero of each share of the range that is tried.
std::vector<Found> candidates(const Grid& grid, const std::vector<double>& weights) {
  float low = 0, high = 0;
  for (const double weight : weights) {
    low = std::min(low, static_cast<float>(weight));
    high = std::max(high, static_cast<float>(weight));
  }
  if (grid.symmetric) {
    high = std::max(high, -low);
    if (low < 0) low = -high;
  }
  std::vector<Found> all;
  for (int i = 0; i < tried; ++i) {
    const auto share = static_cast<float>(1 - i / 100.0);
    const float scale = (high * share - low * share) / grid.largest_code;
    const float zero =
        grid.symmetric ? (grid.largest_code + 1) / 2 : std::nearbyint(-low * share / scale);
    all.push_back({scale, zero});
  }
  return all;
}

/// tile: [columns, rows]. In no row may the range that is found be worse than the best.
void expect_least(const Grid& grid, const at::Tensor& tile) {
  const auto sets = available_kernels();
  for (int64_t set = 0; set < sets.count; ++set) {
    SCOPED_TRACE(sets.first[set]->instruction_set);
    float scale[rows], zero[rows];
    sets.first[set]->find_scale(grid, tile.const_data_ptr<float>(), tile.size(0), scale, zero);
    for (int64_t row = 0; row < rows; ++row) {
      const at::Tensor column = tile.select(1, row).to(at::kDouble).contiguous();
      const std::vector<double> weights(column.const_data_ptr<double>(),
                                        column.const_data_ptr<double>() + column.numel());
      const Found found{scale[row], zero[row]};
      double least = INFINITY;
      bool is_candidate = false;
      for (const Found& candidate : candidates(grid, weights)) {
        least = std::min(least, distortion(grid, weights, candidate));
        is_candidate |= candidate.scale == found.scale && candidate.zero == found.zero;
      }
      EXPECT_TRUE(is_candidate) << "row " << row;
      EXPECT_LE(distortion(grid, weights, found), least * (1 + 2e-6)) << "row " << row;
    }
  }
}

TEST(FindScale, SearchesAsIfAllWereTried) {
  at::manual_seed(5);
  for (const bool symmetric : {true, false})
    for (const float largest_code : {3.0f, 7.0f, 15.0f, 255.0f})
      for (const int64_t columns : {1, 3, 16, 37, 64, 200}) {
        SCOPED_TRACE(testing::Message() << "symmetric " << symmetric << ", largest code "
                                        << largest_code << ", columns " << columns);
        const Grid grid{.largest_code = largest_code, .symmetric = symmetric, .search = true};
        expect_least(grid, at::randn({columns, rows}));
        expect_least(grid, at::randn({columns, rows}).pow(3) * 1e-3f);  // long tails
        expect_least(grid, at::rand({columns, rows}) + 0.5f);
      }
}

TEST(FindScale, AnOutlierIsCutOff) {
  at::manual_seed(6);
  at::Tensor tile = at::randn({128, rows});
  tile[17] = 8;
  expect_least({.largest_code = 7, .search = true}, tile);
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
