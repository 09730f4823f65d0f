#include <ATen/ATen.h>

#include "stages/kernels/cpu/few_rows.hpp"
#include "stages/kernels/cpu/gemm.hpp"
#include "stages/kernels/cpu/loops.hpp"
#include "stages/kernels/cpu/tiles.hpp"

namespace selfcal::kernels {
namespace {

constexpr int64_t row_tile = 256, column_tile = 256;

/// Columns a tile: equal parts of at most column_tile, in steps of a vector.
int64_t columns_a_tile(int64_t columns) {
  return ceil_divide(ceil_divide(columns, ceil_divide(columns, column_tile)), 16) * 16;
}

template <class X, class Y>
void linear_tiled(const Context& context, const at::Tensor& x, const at::Tensor& weight,
                  const at::Tensor& bias, at::Tensor& y) {
  const int64_t n = x.size(0), depth = x.size(1), columns = weight.size(0);
  const auto* x_data = x.const_data_ptr<X>();
  const auto* weight_data = weight.const_data_ptr<X>();
  const auto* bias_data = bias.defined() ? bias.const_data_ptr<X>() : nullptr;
  auto* y_data = y.mutable_data_ptr<Y>();
  const int64_t width = columns_a_tile(columns), tiles_across = ceil_divide(columns, width);

  for_tiles(context, ceil_divide(n, row_tile) * tiles_across, [&](int64_t tile) {
    const int64_t row = tile / tiles_across * row_tile, column = tile % tiles_across * width;
    const int64_t tile_rows = std::min(row_tile, n - row),
                  tile_columns = std::min(width, columns - column);
    const Rows<const X> a{x_data + row * depth, depth}, b{weight_data + column * depth, depth};
    if constexpr (std::is_same_v<Y, float>) {
      if (!bias_data)
        return multiply_transposed(tile_rows, tile_columns, depth, a, b,
                                   {y_data + row * columns + column, columns});
    }
    static thread_local Scratch scratch;
    float* product = scratch.floats(row_tile * column_tile);
    multiply_transposed(tile_rows, tile_columns, depth, a, b, {product, tile_columns});
    for (int64_t i = 0; i < tile_rows; ++i)
      narrow(product + i * tile_columns, bias_data ? bias_data + column : nullptr, tile_columns, 1,
             y_data + (row + i) * columns + column);
  });
}

}  // namespace

at::Tensor linear(const Context& context, const at::Tensor& x, const at::Tensor& weight,
                  const at::Tensor& bias, std::optional<at::ScalarType> result) {
  require(x.dim() == 2 && weight.dim() == 2 && x.size(1) == weight.size(1) &&
              x.scalar_type() == weight.scalar_type(),
          "linear: {} columns of {} times a weight of {} columns of {}", x.size(-1),
          at::toString(x.scalar_type()), weight.size(-1), at::toString(weight.scalar_type()));
  require(
      !bias.defined() || (bias.numel() == weight.size(0) && bias.scalar_type() == x.scalar_type()),
      "linear: a bias of {} entries for {} outputs", bias.defined() ? bias.numel() : 0,
      weight.size(0));
  if (x.size(0) <= few_rows)
    return linear_few_rows(context, x.contiguous(), weight.contiguous(), bias, result);
  const at::Tensor x_aligned = aligned(x), weight_aligned = aligned(weight);
  const at::Tensor bias_aligned = bias.defined() ? aligned(bias) : bias;
  at::Tensor y =
      at::empty({x.size(0), weight.size(0)}, x.options().dtype(result.value_or(x.scalar_type())));
  with_element(x, [&](auto in) {
    with_element(y, [&](auto out) {
      linear_tiled<decltype(in), decltype(out)>(context, x_aligned, weight_aligned, bias_aligned,
                                                y);
    });
  });
  return y;
}

}  // namespace selfcal::kernels
