#include "stages/solve/panels.hpp"

#include <ATen/ATen.h>

#include <algorithm>

#include "stages/kernels/cpu/tiles.hpp"

namespace selfcal {
namespace {

constexpr int64_t panels_at_once = 4;  // kept in the first-level cache while the tiles pass by

}  // namespace

Panels::Panels(const at::Tensor& matrix, std::vector<Rectangle> rectangles,
               const lanes::Kernels& kernels, const kernels::Context& context)
    : rectangles_(std::move(rectangles)), kernels_(&kernels) {
  const int64_t width = kernels.panel_columns, stride = matrix.size(1);
  int64_t size = 0;
  for (const Rectangle& rectangle : rectangles_) {
    offsets_.push_back(size);
    size += kernels::ceil_divide(rectangle.columns, width) * width * rectangle.depth;
  }
  data_ = at::empty({size}, at::kFloat);
  float* into = data_.mutable_data_ptr<float>();
  const float* from = matrix.const_data_ptr<float>();
  kernels::for_tiles(context, int64_t(rectangles_.size()), [&](int64_t i) {
    const auto& [row, depth, column, columns] = rectangles_[i];
    kernels.pack_panels(from + row * stride + column, stride, depth, columns, into + offsets_[i]);
  });
}

void Panels::subtract(int64_t index, int64_t count, const float* other, int64_t other_stride,
                      float* tile, int64_t tile_stride) const {
  const int64_t depth = rectangles_[index].depth, columns = rectangles_[index].columns;
  const float* panels = data_.const_data_ptr<float>() + offsets_[index];
  const int64_t step = panels_at_once * kernels_->panel_columns;
  for (int64_t first = 0; first < columns; first += step) {
    for (int64_t i = 0; i < count; ++i) {
      kernels_->subtract_products(panels + first * depth, depth, std::min(step, columns - first),
                                  other + i * other_stride,
                                  tile + i * tile_stride + first * lanes::rows);
    }
  }
}

}  // namespace selfcal
