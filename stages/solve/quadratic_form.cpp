#include "stages/solve/quadratic_form.hpp"

#include <ATen/ATen.h>

#include "stages/kernels/cpu/tiles.hpp"
#include "stages/kernels/cpu/vector_kernels.hpp"

namespace selfcal {
namespace {

constexpr int64_t block = 128;

/// Blocks of the upper triangle, column of blocks after column of blocks.
std::vector<Rectangle> upper_blocks(int64_t columns) {
  std::vector<Rectangle> blocks;
  for (int64_t column = 0; column < columns; column += block)
    for (int64_t row = 0; row <= column; row += block)
      blocks.push_back(
          {row, std::min(block, columns - row), column, std::min(block, columns - column)});
  return blocks;
}

}  // namespace

QuadraticForm::QuadraticForm(const at::Tensor& hessian, const lanes::Kernels& kernels,
                             const kernels::Context& context)
    : columns_(hessian.size(0)), kernels_(&kernels) {
  if (hessian.dim() == 1)
    diagonal_ = hessian.unsqueeze(1);
  else
    panels_.emplace(hessian, hessian.diagonal().sqrt(), upper_blocks(columns_), kernels, context);
}

at::Tensor QuadraticForm::by_diagonal(const at::Tensor& tiles) const {
  const int64_t tile_size = columns_ * lanes::rows;
  at::Tensor sums = at::zeros({tiles.size(0), lanes::rows}, at::kDouble);
  const at::Tensor weighed = tiles * diagonal_;
  for (int64_t i = 0; i < tiles.size(0); ++i)
    kernels_->add_dot_products(tiles.const_data_ptr<float>() + i * tile_size,
                               weighed.const_data_ptr<float>() + i * tile_size, columns_,
                               sums.mutable_data_ptr<double>() + i * lanes::rows);
  return sums;
}

at::Tensor QuadraticForm::operator()(const at::Tensor& tiles) const {
  if (!panels_) return by_diagonal(tiles);
  const int64_t count = tiles.size(0), tile_size = columns_ * lanes::rows,
                product_size = block * lanes::rows;
  const float* x = tiles.const_data_ptr<float>();
  static thread_local kernels::Scratch product_memory, number_memory;
  float* const product = product_memory.floats(count * product_size);
  auto* const numbers = reinterpret_cast<int32_t*>(
      number_memory.floats(kernels::ceil_divide(columns_, block) * count * panels_->words(block)));
  at::Tensor sums = at::zeros({count, lanes::rows}, at::kDouble);
  double* sum = sums.mutable_data_ptr<double>();
  int64_t index = 0;
  for (int64_t column = 0; column < columns_; column += block) {
    const int64_t width = std::min(block, columns_ - column);
    const float* here = x + column * lanes::rows;
    std::fill_n(product, count * product_size, 0.0f);
    int32_t* of_block = numbers;
    for (int64_t before = 0; before < column; before += block) {
      panels_->subtract(index++, count, of_block, product, product_size);
      of_block += count * panels_->words(block);
    }
    // Twice, since blocks before stand for their mirror images too.
    kernels::vector_kernels().widen(product, kernels::Number::float32, count * product_size, 2,
                                    product);
    panels_->shorten(column, width, count, here, tile_size, of_block);
    panels_->subtract(index++, count, of_block, product, product_size);
    for (int64_t i = 0; i < count; ++i)
      kernels_->add_dot_products(here + i * tile_size, product + i * product_size, width,
                                 sum + i * lanes::rows);
  }
  return sums.neg_();
}

}  // namespace selfcal
