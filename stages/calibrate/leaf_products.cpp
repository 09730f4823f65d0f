#include "stages/calibrate/leaf_products.hpp"

#include <ATen/ATen.h>

#include <algorithm>
#include <cstdint>

#include "stages/kernels/cpu/matrix_units.hpp"
#include "stages/kernels/cpu/tiles.hpp"
#include "stages/kernels/cpu/vector_kernels.hpp"

namespace selfcal {
namespace {

constexpr int64_t depth =
    128;  // tokens multiplied at a time: their panels and strips stay in the nearest caches
constexpr int64_t panels_of_a_step = 4;
constexpr int64_t tokens_at_once = 256;  // by matrix units
constexpr int64_t cache_line = 32;       // bfloat16 numbers
static_assert(kernels::MatrixUnits::panel_columns == lanes::rows);

/// Columns of x [tokens, columns] in strips of 32: [strips][tokens][32], padded by 0.
void pack_strips(const float* x, int64_t tokens, int64_t columns, float* strips) {
  for (int64_t first = 0; first < columns; first += lanes::rows) {
    const int64_t count = std::min(lanes::rows, columns - first);
    for (int64_t token = 0; token < tokens; ++token, strips += lanes::rows) {
      std::copy_n(x + token * columns + first, count, strips);
      std::fill(strips + count, strips + lanes::rows, 0.0f);
    }
  }
}

}  // namespace

int64_t strips_of(int64_t columns) { return kernels::ceil_divide(columns, lanes::rows); }

ProductCode product_code(at::ScalarType dtype) {
  if (dtype != at::kBFloat16) return ProductCode::lanes;
  const auto* units = kernels::matrix_units();
  return units && units->has_tiles ? ProductCode::units : ProductCode::whole;
}

LeafProducts::LeafProducts(const at::Tensor& x, ProductCode code, const kernels::Context& context)
    : x_(kernels::aligned(x)), code_(code), kernels_(lanes::kernels()) {
  if (code_ == ProductCode::lanes) pack(x_, context);
  if (code_ == ProductCode::units) pack_for_units(context);
}

void LeafProducts::pack(const at::Tensor& x, const kernels::Context& context) {
  const int64_t tokens = x.size(0), columns = x.size(1), width = kernels_.panel_columns;
  const int64_t panels_a_token = kernels::ceil_divide(columns, width) * width;
  const int64_t strips_a_token = strips_of(columns) * lanes::rows;
  panels_ = at::empty({tokens, panels_a_token}, at::kFloat);
  strips_ = at::empty({tokens, strips_a_token}, at::kFloat);
  float *panels = panels_.mutable_data_ptr<float>(), *strips = strips_.mutable_data_ptr<float>();
  kernels::for_ranges(context, tokens, depth, [&](int64_t first, int64_t count) {
    const at::Tensor rows = x.narrow(0, first, count).to(at::kFloat);
    const float* from = rows.const_data_ptr<float>();
    kernels_.pack_panels(from, columns, count, columns, panels + first * panels_a_token);
    pack_strips(from, count, columns, strips + first * strips_a_token);
  });
}

ProductTile LeafProducts::operator()(int64_t first_strip, int64_t strips, int64_t column,
                                     int64_t columns) const {
  return code_ == ProductCode::units ? by_units(first_strip, strips, column, columns)
                                     : by_lanes(first_strip, strips, column, columns);
}

ProductTile LeafProducts::by_lanes(int64_t first_strip, int64_t strips, int64_t column,
                                   int64_t columns) const {
  const int64_t tokens = x_.size(0), step = panels_of_a_step * kernels_.panel_columns,
                strip_size = columns * lanes::rows;
  ProductTile tile{at::zeros({strips, columns, lanes::rows}, at::kFloat), strip_size, lanes::rows,
                   -1};
  float* into = tile.data.mutable_data_ptr<float>();
  for (int64_t token = 0; token < tokens; token += depth) {
    const int64_t here = std::min(depth, tokens - token);
    const float* panels = panels_.const_data_ptr<float>() + token * panels_.size(1) + column * here;
    const float* strip = strips_.const_data_ptr<float>() + token * strips_.size(1) +
                         first_strip * here * lanes::rows;
    for (int64_t first = 0; first < columns; first += step) {
      const int64_t count = std::min(step, columns - first);
      for (int64_t s = 0; s < strips; ++s) {
        if (column + first + count <= (first_strip + s) * lanes::rows)
          continue;  // below the diagonal
        kernels_.subtract_products(panels + first * here, here, count,
                                   strip + s * here * lanes::rows,
                                   into + s * strip_size + first * lanes::rows);
      }
    }
  }
  return tile;
}

void LeafProducts::pack_for_units(const kernels::Context& context) {
  const int64_t tokens = x_.size(0), columns = x_.size(1);
  const int64_t pairs = kernels::padded_depth(tokens) / 2;
  panels_ = at::empty({strips_of(columns), pairs, lanes::rows}, at::kInt);
  strips_ = at::empty({strips_of(columns) * lanes::rows, 2 * pairs + cache_line}, at::kBFloat16);
  const auto* x = static_cast<const uint16_t*>(x_.const_data_ptr());
  kernels::for_tiles(context, strips_of(columns), [&](int64_t strip) {
    const int64_t first = strip * lanes::rows;
    auto* panel = panels_.mutable_data_ptr<int32_t>() + strip * pairs * lanes::rows;
    kernels::matrix_units()->pack_columns(x + first, columns, tokens,
                                          std::min(lanes::rows, columns - first), panel);
    // A panel's transpose is its columns, token after token.
    kernels::vector_kernels().transpose(
        {panel, kernels::Number::float32, pairs, lanes::rows}, strips_.size(1) / 2, 0, lanes::rows,
        reinterpret_cast<float*>(strips_.mutable_data_ptr<at::BFloat16>() +
                                 first * strips_.size(1)));
  });
}

ProductTile LeafProducts::by_units(int64_t first_strip, int64_t strips, int64_t column,
                                   int64_t columns) const {
  const int64_t width = strips * lanes::rows, pairs = panels_.size(1), stride = strips_.size(1);
  ProductTile tile{at::empty({columns, width}, at::kFloat), lanes::rows, width, 1};
  const auto* rows = static_cast<const uint16_t*>(strips_.const_data_ptr());
  float* into = tile.data.mutable_data_ptr<float>();
  const auto panel = [&](int64_t s, int64_t token) {
    return panels_.const_data_ptr<int32_t>() +
           ((first_strip + s) * pairs + token / 2) * lanes::rows;
  };
  for (int64_t token = 0; token < 2 * pairs; token += tokens_at_once) {
    for (int64_t s = 0; s < strips; ++s) {
      const int64_t above = std::max<int64_t>(0, (first_strip + s) * lanes::rows - column);
      kernels::matrix_units()->multiply(
          columns - above, std::min(tokens_at_once, 2 * pairs - token),
          rows + (column + above) * stride + token, stride, panel(s, token),
          into + above * width + s * lanes::rows, width, token > 0,
          s + 1 < strips ? panel(s + 1, token) : nullptr);
    }
  }
  return tile;
}

}  // namespace selfcal
