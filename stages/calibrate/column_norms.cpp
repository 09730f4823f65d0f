#include "stages/calibrate/column_norms.hpp"

#include <ATen/ATen.h>

#include <cmath>

#include "stages/kernels/cpu/matrix.hpp"
#include "stages/kernels/cpu/tiles.hpp"

namespace selfcal {
namespace {

constexpr int64_t columns_of_a_sum = 64;

}  // namespace

ColumnNorms::ColumnNorms(int64_t columns, kernels::Context context)
    : columns_(columns), context_(context), sums_(columns) {}

void ColumnNorms::add(const at::Tensor& x) {
  kernels::require(x.dim() == 2 && x.size(1) == columns_, "norms: a leaf is [{}], not [tokens, {}]",
                   fmt::join(x.sizes(), ", "), columns_);
  const kernels::Matrix leaf = kernels::matrix_of(x);
  std::vector<double> sums(static_cast<size_t>(columns_));
  kernels::for_ranges(context_, columns_, columns_of_a_sum, [&](int64_t first, int64_t count) {
    kernels::vector_kernels().sum_squares(leaf, first, count, sums.data() + first);
    for (int64_t i = first; i < first + count; ++i)
      if (!std::isfinite(sums[i])) fail(ExitCode::data, "activation not finite");
  });
  sums_.add(std::move(sums));
}

at::Tensor ColumnNorms::finish(int64_t tokens) const {
  at::Tensor norms = at::empty({columns_}, at::kFloat);
  float* norm = norms.mutable_data_ptr<float>();
  for (int64_t i = 0; i < columns_; ++i)
    norm[i] = static_cast<float>(std::sqrt(sums_.at(i) / double(tokens)));
  return norms;
}

}  // namespace selfcal
