#include "stages/solve/whole_panels.hpp"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>

#include "stages/kernels/cpu/tiles.hpp"

namespace selfcal {
namespace {

constexpr int64_t panels_at_once = 8;  // kept in the first-level cache while the tiles pass by

int64_t pairs_of(int64_t depth) { return kernels::ceil_divide(depth, 2); }

/// The power of two next below each size; 1 where there is none.
at::Tensor powers_of_two(const at::Tensor& sizes) {
  at::Tensor powers = at::empty_like(sizes);
  const float* size = sizes.const_data_ptr<float>();
  float* power = powers.mutable_data_ptr<float>();
  for (int64_t i = 0; i < sizes.numel(); ++i)
    power[i] = std::isnormal(size[i]) ? std::ldexp(1.0f, std::ilogb(size[i])) : 1.0f;
  return powers;
}

}  // namespace

WholePanels::WholePanels(const at::Tensor& matrix, const at::Tensor& sizes,
                         std::vector<Rectangle> rectangles, const lanes::Kernels& kernels,
                         const kernels::Context& context)
    : rectangles_(std::move(rectangles)),
      factors_(powers_of_two(sizes.contiguous())),
      inverse_factors_(factors_.reciprocal()),
      kernels_(&kernels) {
  const int64_t width = kernels.panel_columns, stride = matrix.size(1);
  int64_t size = 0, columns_before = 0;
  for (const Rectangle& rectangle : rectangles_) {
    offsets_.push_back(size);
    step_offsets_.push_back(columns_before);
    size += kernels::ceil_divide(rectangle.columns, width) * width * pairs_of(rectangle.depth);
    columns_before += rectangle.columns;
  }
  numbers_ = at::empty({size}, at::kInt);
  steps_ = at::empty({columns_before}, at::kFloat);
  auto* into = numbers_.mutable_data_ptr<int32_t>();
  auto* steps = steps_.mutable_data_ptr<float>();
  const float *from = matrix.const_data_ptr<float>(),
              *factors = inverse_factors_.const_data_ptr<float>();
  kernels::for_tiles(context, int64_t(rectangles_.size()), [&](int64_t i) {
    const auto& [row, depth, column, columns] = rectangles_[i];
    kernels.whole_panels(from + row * stride + column, stride, depth, columns, factors + row,
                         into + offsets_[i], steps + step_offsets_[i]);
  });
}

WholeTiles WholePanels::whole(int64_t row, int64_t depth, int64_t count, const float* other,
                              int64_t stride) const {
  WholeTiles tiles{at::empty({count, pairs_of(depth), lanes::rows}, at::kInt),
                   at::empty({count, lanes::rows}, at::kFloat)};
  for (int64_t i = 0; i < count; ++i)
    kernels_->whole_tile(other + i * stride, depth, factors_.const_data_ptr<float>() + row,
                         tiles.numbers.mutable_data_ptr<int32_t>() + i * tiles.numbers.stride(0),
                         tiles.steps.mutable_data_ptr<float>() + i * lanes::rows);
  return tiles;
}

void WholePanels::subtract(int64_t index, const WholeTiles& other, float* tile,
                           int64_t stride) const {
  const int64_t depth = rectangles_[index].depth, columns = rectangles_[index].columns,
                pairs = pairs_of(depth), step = panels_at_once * kernels_->panel_columns;
  const auto* panels = numbers_.const_data_ptr<int32_t>() + offsets_[index];
  const auto* column_steps = steps_.const_data_ptr<float>() + step_offsets_[index];
  for (int64_t first = 0; first < columns; first += step) {
    for (int64_t i = 0; i < other.numbers.size(0); ++i) {
      kernels_->subtract_whole(
          panels + first * pairs, column_steps + first, depth, std::min(step, columns - first),
          other.numbers.const_data_ptr<int32_t>() + i * other.numbers.stride(0),
          other.steps.const_data_ptr<float>() + i * lanes::rows,
          tile + i * stride + first * lanes::rows);
    }
  }
}

void WholePanels::subtract(int64_t index, int64_t count, const float* other, int64_t other_stride,
                           float* tile, int64_t tile_stride) const {
  const auto& [row, depth, column, columns] = rectangles_[index];
  subtract(index, whole(row, depth, count, other, other_stride), tile, tile_stride);
}

}  // namespace selfcal
