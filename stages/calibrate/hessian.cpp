#include "stages/calibrate/hessian.hpp"

#include <ATen/ATen.h>

#include <bit>
#include <cmath>

#include "base/error.hpp"
#include "stages/calibrate/leaf_product.hpp"

namespace selfcal {
namespace {

constexpr int64_t tile_columns = 256;     // of one library call and one task of the pool
constexpr int64_t strip_columns = 64;     // of one task of observe()
constexpr int entry_bits = 45;            // of a leaf's largest entry, as an integer
constexpr int32_t empty_column = -160;    // below the exponent of any float32 that is not zero
constexpr int32_t largest_exponent = 63;  // products of larger columns could overflow float32

void check_leaf(const at::Tensor& x, int64_t columns) {
  if (x.dim() != 2 || x.size(1) != columns || !x.is_contiguous() || !x.is_cpu() ||
      (x.scalar_type() != at::kFloat && x.scalar_type() != at::kBFloat16)) {
    fail(ExitCode::internal,
         "statistics: a leaf is {} {}, expected contiguous [tokens, {}] float32 or bfloat16",
         toString(x.scalar_type()), fmt::join(x.sizes(), "x"), columns);
  }
}

/// Sums of squares of the columns [first, first + count), each over the tokens in order.
template <class T>
void sum_squares(const T* x, int64_t tokens, int64_t stride, int64_t count, double* sums) {
  std::fill_n(sums, strip_columns, 0.0);
  for (int64_t t = 0; t < tokens; ++t, x += stride) {
    if (count == strip_columns) {
      for (int64_t i = 0; i < strip_columns; ++i)
        sums[i] += double(float(x[i])) * double(float(x[i]));
    } else {
      for (int64_t i = 0; i < count; ++i) sums[i] += double(float(x[i])) * double(float(x[i]));
    }
  }
}

/// The smallest h with sqrt(sum) <= 2^h.
int32_t norm_exponent(double sum) {
  if (!std::isfinite(sum)) fail(ExitCode::data, "activation not finite");
  if (sum == 0) return empty_column;
  int exponent = 0;
  std::frexp(sum, &exponent);
  const int32_t half = (exponent + 1) >> 1;  // rounded up; sum < 2^exponent
  if (half > largest_exponent) {
    fail(ExitCode::data,
         "activations too large: the squares of a column sum to {:.3g}, float32 products overflow",
         sum);
  }
  return half;
}

/// Rounds to the nearest integer, ties to even; |value| < 2^51. (Vectorises where a conversion
/// would not.)
int64_t round_to_integer(double value) {
  constexpr double magic = 0x1.8p52;
  return std::bit_cast<int64_t>(value + magic) - std::bit_cast<int64_t>(magic);
}

}  // namespace

HessianAccumulator::HessianAccumulator(int64_t columns, kernels::Context context)
    : columns_(columns), context_(context), exponents_(columns, empty_column) {
  int64_t offset = 0;
  for (int64_t row = 0; row < columns; row += tile_columns) {
    for (int64_t column = row; column < columns; column += tile_columns) {
      const int64_t rows = std::min(tile_columns, columns - row),
                    width = std::min(tile_columns, columns - column);
      tiles_.push_back({row, rows, column, width, offset});
      offset += rows * width;
    }
  }
  sums_.assign(offset, 0);
}

void HessianAccumulator::observe(const at::Tensor& x) {
  check_leaf(x, columns_);
  const int64_t tokens = x.size(0), strips = (columns_ + strip_columns - 1) / strip_columns;
  context_.threads->parallel_for(strips, [&](int64_t strip) {
    const int64_t first = strip * strip_columns, count = std::min(strip_columns, columns_ - first);
    double sums[strip_columns];
    if (x.scalar_type() == at::kFloat) {
      sum_squares(x.const_data_ptr<float>() + first, tokens, columns_, count, sums);
    } else {
      sum_squares(x.const_data_ptr<at::BFloat16>() + first, tokens, columns_, count, sums);
    }
    for (int64_t i = 0; i < count; ++i)
      exponents_[first + i] = std::max(exponents_[first + i], norm_exponent(sums[i]));
  });
}

void HessianAccumulator::add(const at::Tensor& x) {
  check_leaf(x, columns_);
  if (x.size(0) == 0) return;
  const at::Tensor leaf = aligned(x);
  context_.threads->parallel_for(tiles_.size(), [&](int64_t i) { add_tile(leaf, tiles_[i]); });
}

void HessianAccumulator::add_tile(const at::Tensor& x, const Tile& tile) {
  const at::Tensor product = leaf_product(x, tile.row, tile.rows, tile.column, tile.columns);
  const float* entry = product.const_data_ptr<float>();
  int64_t* sum = sums_.data() + tile.offset;
  std::vector<double> column_scale(tile.columns);
  for (int64_t j = 0; j < tile.columns; ++j)
    column_scale[j] = std::ldexp(1.0, -exponents_[tile.column + j]);
  for (int64_t i = 0; i < tile.rows; ++i) {
    const double row_scale = std::ldexp(1.0, entry_bits - exponents_[tile.row + i]);
    if (tile.row == tile.column) {
      const double diagonal = double(entry[i * tile.columns + i]) * row_scale * column_scale[i];
      // One bit to spare for the rounding of the float32 product.
      if (!(diagonal <= std::ldexp(1.0, entry_bits + 1))) {
        fail(ExitCode::internal,
             "statistics: column {} of a leaf is larger than any that was observed", tile.row + i);
      }
    }
    for (int64_t j = 0; j < tile.columns; ++j) {
      sum[i * tile.columns + j] +=
          round_to_integer(double(entry[i * tile.columns + j]) * row_scale * column_scale[j]);
    }
  }
}

at::Tensor HessianAccumulator::finish(int64_t tokens) const {
  if (tokens < 1) fail(ExitCode::internal, "statistics: no tokens were seen");
  at::Tensor hessian = at::empty({columns_, columns_}, at::kFloat);
  float* h = hessian.mutable_data_ptr<float>();
  context_.threads->parallel_for(tiles_.size(), [&](int64_t index) {
    const Tile& tile = tiles_[index];
    for (int64_t i = 0; i < tile.rows; ++i) {
      for (int64_t j = 0; j < tile.columns; ++j) {
        const int64_t row = tile.row + i, column = tile.column + j;
        if (column < row) continue;
        const double sum = double(sums_[tile.offset + i * tile.columns + j]) / double(tokens);
        const float value =
            float(std::ldexp(sum, exponents_[row] + exponents_[column] - entry_bits));
        h[row * columns_ + column] = value;
        h[column * columns_ + row] = value;
      }
    }
  });
  return hessian;
}

}  // namespace selfcal
