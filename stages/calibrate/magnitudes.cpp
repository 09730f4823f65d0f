#include "stages/calibrate/magnitudes.hpp"

#include <ATen/ATen.h>

#include <array>
#include <cmath>

#include "stages/kernels/cpu/matrix.hpp"
#include "stages/kernels/cpu/tiles.hpp"

namespace selfcal {
namespace {

constexpr int64_t columns_of_a_task = 64;
constexpr int unit_bits = 40;

}  // namespace

void MagnitudeAccumulator::add(const at::Tensor& x) {
  const int64_t columns = x.size(1);
  kernels::require(columns == int64_t(sums_.size()), "magnitudes: a leaf has {} columns, not {}",
                   columns, sums_.size());
  const kernels::Matrix leaf = kernels::matrix_of(x);
  kernels::for_ranges(context_, columns, columns_of_a_task, [&](int64_t first, int64_t count) {
    std::array<double, columns_of_a_task> sums;
    kernels::vector_kernels().sum_sizes(leaf, first, count, sums.data());
    for (int64_t i = 0; i < count; ++i)
      sums_[first + i] += std::llrint(std::ldexp(sums[i], unit_bits - exponents_[first + i]));
  });
}

at::Tensor MagnitudeAccumulator::finish(int64_t tokens) const {
  at::Tensor mean = at::empty({int64_t(sums_.size())}, at::kFloat);
  for (size_t i = 0; i < sums_.size(); ++i)
    mean.mutable_data_ptr<float>()[i] =
        float(std::ldexp(double(sums_[i]) / double(tokens), exponents_[i] - unit_bits));
  return mean;
}

}  // namespace selfcal
