#include "stages/calibrate/leaf_products.hpp"

#include <ATen/ATen.h>

#include <algorithm>
#include <cstdint>

#include "stages/kernels/cpu/gemm.hpp"
#include "stages/kernels/cpu/tiles.hpp"

// Of the BLAS inside the tensor library, which ships no header for it.
extern "C" void cblas_gemm_bf16bf16f32(int layout, int transpose_a, int transpose_b, int m, int n,
                                       int k, float alpha, const void* a, int lda, const void* b,
                                       int ldb, float beta, float* c, int ldc);

namespace selfcal {
namespace {

constexpr int row_major = 101, no_transpose = 111, transpose = 112;
constexpr int64_t depth =
    128;  // tokens multiplied at a time: their panels and strips stay in the nearest caches
constexpr int64_t panels_of_a_step = 4;

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
#ifdef __x86_64__
  if (kernels::library_is_tuned() && __builtin_cpu_supports("avx512bf16"))
    return ProductCode::library;
#endif
  return ProductCode::whole;
}

LeafProducts::LeafProducts(const at::Tensor& x, ProductCode code, const kernels::Context& context)
    : x_(kernels::aligned(x)), code_(code), kernels_(lanes::kernels()) {
  if (code_ == ProductCode::lanes) pack(x, context);
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
  return code_ == ProductCode::library ? by_library(first_strip, strips, column, columns)
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

ProductTile LeafProducts::by_library(int64_t first_strip, int64_t strips, int64_t column,
                                     int64_t columns) const {
  const int64_t width = strips * lanes::rows, first = first_strip * lanes::rows, all = x_.size(1);
  ProductTile tile{at::zeros({columns, width}, at::kFloat), lanes::rows, width, 1};
  const auto* x = x_.const_data_ptr<at::BFloat16>();
  cblas_gemm_bf16bf16f32(row_major, transpose, no_transpose, int(columns),
                         int(std::min(width, all - first)), int(x_.size(0)), 1.0f, x + column,
                         int(all), x + first, int(all), 0.0f, tile.data.mutable_data_ptr<float>(),
                         int(width));
  return tile;
}

}  // namespace selfcal
