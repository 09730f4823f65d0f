#include "stages/calibrate/column_norms.hpp"

#include <ATen/ATen.h>

#include <cmath>

#include "stages/kernels/cpu/matrix.hpp"
#include "stages/kernels/cpu/tiles.hpp"

namespace selfcal {
namespace {

constexpr int64_t columns_of_a_sum = 64;
constexpr int sum_bits = 45;               // of a leaf's largest sum, as an integer
constexpr int32_t no_exponent = -1 << 10;  // below that of any float32's square

}  // namespace

ColumnNorms::ColumnNorms(int64_t columns, kernels::Context context)
    : columns_(columns), context_(context), exponents_(columns, no_exponent), sums_(columns) {}

void ColumnNorms::add(const at::Tensor& x) {
  kernels::require(x.dim() == 2 && x.size(1) == columns_, "norms: a leaf is [{}], not [tokens, {}]",
                   fmt::join(x.sizes(), ", "), columns_);
  const kernels::Matrix leaf = kernels::matrix_of(x);
  auto& sums = leaves_.emplace_back(columns_);
  kernels::for_ranges(context_, columns_, columns_of_a_sum, [&](int64_t first, int64_t count) {
    kernels::vector_kernels().sum_squares(leaf, first, count, sums.data() + first);
    for (int64_t i = first; i < first + count; ++i) {
      if (!std::isfinite(sums[i])) fail(ExitCode::data, "activation not finite");
      int exponent = no_exponent;
      if (sums[i] > 0) std::frexp(sums[i], &exponent);
      exponents_[i] = std::max<int32_t>(exponents_[i], exponent);
    }
  });
}

void ColumnNorms::count() {
  for (const auto& leaf : leaves_)
    for (int64_t i = 0; i < columns_; ++i)
      sums_[i] += std::llrint(std::ldexp(leaf[i], sum_bits - exponents_[i]));
  leaves_.clear();
}

at::Tensor ColumnNorms::finish(int64_t tokens) const {
  at::Tensor norms = at::empty({columns_}, at::kFloat);
  float* norm = norms.mutable_data_ptr<float>();
  for (int64_t i = 0; i < columns_; ++i)
    norm[i] = static_cast<float>(std::sqrt(
        std::ldexp(static_cast<double>(sums_[i]), exponents_[i] - sum_bits) / double(tokens)));
  return norms;
}

}  // namespace selfcal
