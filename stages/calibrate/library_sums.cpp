#include "stages/calibrate/library_sums.hpp"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>

namespace selfcal {
namespace {

constexpr int64_t rows_together = 1024;  // of products: bounds their memory

}  // namespace

LibrarySums::LibrarySums(int64_t columns, at::Device memory)
    : sums_(at::zeros({columns, columns}, at::device(memory).dtype(at::kLong))) {}

std::vector<double> LibrarySums::squares_of_columns(const at::Tensor& x) {
  const at::Tensor sums = x.to(at::kDouble).square().sum(0).to(at::kCPU);
  const auto* first = sums.const_data_ptr<double>();
  return {first, first + sums.numel()};
}

void LibrarySums::add(const at::Tensor& x, std::span<const int32_t> exponents, int bits) {
  const auto columns = static_cast<int64_t>(exponents.size());
  at::Tensor scales = at::empty({columns}, at::kDouble);
  for (int64_t i = 0; i < columns; ++i)
    scales.mutable_data_ptr<double>()[i] = std::ldexp(1.0, -exponents[i]);
  scales = scales.to(x.device());
  const at::Tensor wide = x.to(at::kFloat);
  for (int64_t first = 0; first < columns; first += rows_together) {
    const int64_t rows = std::min(rows_together, columns - first), rest = columns - first;
    const at::Tensor products =
        at::mm(wide.narrow(1, first, rows).t(), wide.narrow(1, first, rest)).to(at::kDouble);
    const at::Tensor row_scales =
        scales.narrow(0, first, rows).unsqueeze(1) * std::ldexp(1.0, bits);
    sums_.narrow(0, first, rows)
        .narrow(1, first, rest)
        .add_((products * row_scales * scales.narrow(0, first, rest)).round_().to(at::kLong));
  }
}

void LibrarySums::read(int64_t first, int64_t rows, int64_t* into) const {
  const int64_t columns = sums_.size(0), here = std::min(rows, columns - first);
  const at::Tensor part =
      sums_.narrow(0, first, here).narrow(1, first, columns - first).t().contiguous().to(at::kCPU);
  const auto* from = part.const_data_ptr<int64_t>();
  for (int64_t j = 0; j < part.size(0); ++j)
    for (int64_t r = 0; r < here; ++r) into[j * rows + r] += *from++;
}

}  // namespace selfcal
