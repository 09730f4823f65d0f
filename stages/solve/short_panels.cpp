#include "stages/solve/short_panels.hpp"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>

#include "stages/kernels/cpu/tiles.hpp"

namespace selfcal {
namespace {

constexpr int64_t columns_at_once = 96;  // kept in the nearest caches while the tiles pass by

/// 32-bit words of so many numbers along the sum, for one column or row.
int64_t words_of(int64_t depth, const lanes::Kernels& kernels) {
  return kernels::ceil_divide(depth, kernels.short_depth) * kernels.short_depth / 2 *
         kernels.short_words;
}

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

ShortPanels::ShortPanels(const at::Tensor& matrix, const at::Tensor& sizes,
                         std::vector<Rectangle> rectangles, const lanes::Kernels& kernels,
                         const kernels::Context& context)
    : rectangles_(std::move(rectangles)),
      factors_(powers_of_two(sizes.contiguous())),
      inverse_factors_(factors_.reciprocal()),
      kernels_(&kernels) {
  const int64_t width = kernels.short_columns, stride = matrix.size(1);
  int64_t size = 0, columns_before = 0;
  for (const Rectangle& rectangle : rectangles_) {
    offsets_.push_back(size);
    step_offsets_.push_back(columns_before);
    size +=
        kernels::ceil_divide(rectangle.columns, width) * width * words_of(rectangle.depth, kernels);
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
    kernels.short_panels(from + row * stride + column, stride, depth, columns, factors + row,
                         into + offsets_[i], steps + step_offsets_[i]);
  });
}

int64_t ShortPanels::words(int64_t depth) const {
  // (The steps of the rows follow the numbers.)
  return (words_of(depth, *kernels_) + 1) * lanes::rows;
}

void ShortPanels::shorten(int64_t row, int64_t depth, int64_t count, const float* other,
                          int64_t stride, int32_t* words) const {
  const int64_t of_tile = this->words(depth);
  for (int64_t i = 0; i < count; ++i, words += of_tile)
    kernels_->short_tile(other + i * stride, depth, factors_.const_data_ptr<float>() + row, words,
                         reinterpret_cast<float*>(words + of_tile - lanes::rows));
}

void ShortPanels::subtract(int64_t index, int64_t count, const int32_t* words, float* tile,
                           int64_t stride) const {
  const int64_t depth = rectangles_[index].depth, columns = rectangles_[index].columns,
                of_column = words_of(depth, *kernels_), of_tile = this->words(depth);
  const auto* panels = numbers_.const_data_ptr<int32_t>() + offsets_[index];
  const auto* column_steps = steps_.const_data_ptr<float>() + step_offsets_[index];
  for (int64_t first = 0; first < columns; first += columns_at_once) {
    for (int64_t i = 0; i < count; ++i) {
      const int32_t* numbers = words + i * of_tile;
      kernels_->subtract_short(panels + first * of_column, column_steps + first, depth,
                               std::min(columns_at_once, columns - first), numbers,
                               reinterpret_cast<const float*>(numbers + of_tile - lanes::rows),
                               tile + i * stride + first * lanes::rows);
    }
  }
}

void ShortPanels::subtract(int64_t index, int64_t count, const float* other, int64_t other_stride,
                           float* tile, int64_t tile_stride) const {
  static thread_local kernels::Scratch scratch;
  const auto& [row, depth, column, columns] = rectangles_[index];
  auto* numbers = reinterpret_cast<int32_t*>(scratch.floats(count * words(depth)));
  shorten(row, depth, count, other, other_stride, numbers);
  subtract(index, count, numbers, tile, tile_stride);
}

}  // namespace selfcal
