#include "stages/calibrate/whole_products.hpp"

#include <ATen/ATen.h>

#include <algorithm>
#include <array>
#include <cmath>

#include "base/error.hpp"
#include "stages/kernels/cpu/matrix.hpp"

namespace selfcal {
namespace {

constexpr int64_t pairs_at_once =
    128;  // pairs of tokens at a time: their panels stay in the nearest cache
constexpr int64_t two_lines = 64;  // 16-bit numbers between rows, which else share cache lines
constexpr int32_t smallest_exponent = -100;

}  // namespace

WholeProducts::WholeProducts(const at::Tensor& x, std::span<const int32_t> exponents,
                             const kernels::Context& context) {
  const auto& vectors = kernels::vector_kernels();
  const kernels::Matrix leaf = kernels::matrix_of(x);
  panel_columns_ = 2 * vectors.width;
  pairs_ = kernels::whole_row(leaf.count, vectors.width) / 2;
  stride_ = 2 * pairs_ + two_lines;
  const int64_t padded = kernels::ceil_divide(leaf.columns, lanes::rows) * lanes::rows;
  panels_ = at::empty({padded * pairs_}, at::kInt);
  rows_ = at::empty({padded * stride_}, at::kShort);
  kernels::for_ranges(context, padded, lanes::rows, [&](int64_t first, int64_t) {
    std::array<float, lanes::rows> factors{};
    for (int64_t i = 0; i < std::min(lanes::rows, leaf.columns - first); ++i)
      if (exponents[first + i] >= smallest_exponent)
        factors[i] = std::ldexp(1.0f, whole_bits - exponents[first + i]);
    for (int64_t i = 0; i < lanes::rows; i += panel_columns_)
      if (!vectors.columns_to_whole(
              leaf, first + i, std::clamp<int64_t>(leaf.columns - first - i, 0, panel_columns_),
              factors.data() + i, panel(first + i), row(first + i), stride_))
        fail(ExitCode::internal,
             "statistics: a column from {} on of a leaf is larger than any that was observed",
             first + i);
  });
}

void WholeProducts::add(int64_t first, int64_t column, int64_t columns, int32_t* result) const {
  const auto& vectors = kernels::vector_kernels();
  for (int64_t pair = 0; pair < pairs_; pair += pairs_at_once) {
    const int64_t here = std::min(pairs_at_once, pairs_ - pair);
    for (int64_t i = 0; i < lanes::rows; i += panel_columns_) {
      const int64_t begin = std::max<int64_t>(0, first + i - column);
      if (begin >= columns) continue;
      vectors.multiply_whole(columns - begin, here, row(column + begin) + 2 * pair, stride_,
                             panel(first + i) + pair * panel_columns_,
                             result + begin * lanes::rows + i, lanes::rows, true);
    }
  }
}

}  // namespace selfcal
