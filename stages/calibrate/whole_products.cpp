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
constexpr int32_t smallest_exponent = -100;

}  // namespace

WholeProducts::WholeProducts(const at::Tensor& x, std::span<const int32_t> exponents,
                             const kernels::Context& context) {
  const auto& vectors = kernels::vector_kernels();
  const kernels::Matrix leaf = kernels::matrix_of(x);
  panel_columns_ = 2 * vectors.width;
  pairs_ = kernels::whole_row(leaf.count, vectors.width) / 2;
  const int64_t padded = kernels::ceil_divide(leaf.columns, lanes::rows) * lanes::rows;
  panels_ = at::empty({padded * pairs_}, at::kInt);
  kernels::for_ranges(context, padded, lanes::rows, [&](int64_t first, int64_t) {
    std::array<float, lanes::rows> factors{};
    for (int64_t i = 0; i < std::min(lanes::rows, leaf.columns - first); ++i)
      if (exponents[first + i] >= smallest_exponent)
        factors[i] = std::ldexp(1.0f, whole_bits - exponents[first + i]);
    for (int64_t i = 0; i < lanes::rows; i += panel_columns_)
      if (!vectors.columns_to_whole(
              leaf, first + i, std::clamp<int64_t>(leaf.columns - first - i, 0, panel_columns_),
              factors.data() + i, panel(first + i)))
        fail(ExitCode::internal,
             "statistics: a column from {} on of a leaf is larger than any that was observed",
             first + i);
  });
}

void WholeProducts::add(int64_t first, int64_t column, int64_t columns, int32_t* result) const {
  const auto& vectors = kernels::vector_kernels();
  for (int64_t pair = 0; pair < pairs_; pair += pairs_at_once) {
    const int64_t here = std::min(pairs_at_once, pairs_ - pair);
    const auto part = [&](int64_t j) { return panel(j) + pair * panel_columns_; };
    for (int64_t i = 0; i < lanes::rows; i += panel_columns_)
      for (int64_t j = std::max<int64_t>(0, first + i - column); j < columns; j += panel_columns_)
        vectors.multiply_whole(std::min(panel_columns_, columns - j), here, part(column + j),
                               panel_columns_, part(first + i), result + j * lanes::rows + i,
                               lanes::rows, true);
  }
}

}  // namespace selfcal
