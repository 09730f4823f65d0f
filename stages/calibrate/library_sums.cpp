#include "stages/calibrate/library_sums.hpp"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>

namespace selfcal {
LibrarySums::LibrarySums(int64_t columns, at::Device memory) : columns_(columns) {
  for (int64_t first = 0; first < columns; first += rows_of_a_block)
    blocks_.push_back(at::zeros({std::min(rows_of_a_block, columns - first), columns - first},
                                at::device(memory).dtype(at::kLong)));
}

std::vector<double> LibrarySums::squares_of_columns(const at::Tensor& x) {
  const at::Tensor sums = x.to(at::kDouble).square().sum(0).to(at::kCPU);
  const auto* first = sums.const_data_ptr<double>();
  return {first, first + sums.numel()};
}

void LibrarySums::add(const at::Tensor& x, std::span<const int32_t> exponents, int bits) {
  at::Tensor scales = at::empty({columns_}, at::kDouble);
  for (int64_t i = 0; i < columns_; ++i)
    scales.mutable_data_ptr<double>()[i] = std::ldexp(1.0, -exponents[i]);
  scales = scales.to(x.device());
  const at::Tensor wide = x.to(at::kFloat);
  int64_t first = 0;
  for (at::Tensor& block : blocks_) {
    const int64_t rows = block.size(0), rest = block.size(1);
    const at::Tensor products =
        at::mm(wide.narrow(1, first, rows).t(), wide.narrow(1, first, rest)).to(at::kDouble);
    const at::Tensor row_scales =
        scales.narrow(0, first, rows).unsqueeze(1) * std::ldexp(1.0, bits);
    block.add_((products * row_scales * scales.narrow(0, first, rest)).round_().to(at::kLong));
    first += rows;
  }
}

at::Tensor LibrarySums::mean(std::span<const int32_t> exponents, int bits, int64_t tokens) const {
  const auto options = blocks_.front().options();
  at::Tensor scale = at::empty({columns_}, at::kDouble), unit = at::empty({columns_}, at::kDouble);
  for (int64_t i = 0; i < columns_; ++i) {
    scale.mutable_data_ptr<double>()[i] = std::ldexp(1.0, exponents[i]);
    unit.mutable_data_ptr<double>()[i] = std::ldexp(1.0, exponents[i] - bits);
  }
  scale = scale.to(options.device());
  unit = unit.to(options.device());
  // Of one entry and there: the library would multiply by the reciprocal of a number of the host.
  const at::Tensor count =
      at::full({1}, static_cast<double>(tokens), at::device(options.device()).dtype(at::kDouble));
  at::Tensor mean = at::empty({columns_, columns_}, options.dtype(at::kFloat));
  int64_t first = 0;
  for (const at::Tensor& block : blocks_) {
    const int64_t rows = block.size(0), beyond = columns_ - first - rows;
    const at::Tensor entries =
        block.to(at::kDouble)
            .div_(count)
            .mul_(unit.narrow(0, first, rows).unsqueeze(1) * scale.narrow(0, first, rows + beyond))
            .to(at::kFloat);
    const at::Tensor corner = entries.narrow(1, 0, rows);
    const at::Tensor below = at::ones({rows, rows}, corner.options().dtype(at::kBool)).tril(-1);
    const at::Tensor here = mean.narrow(0, first, rows);
    here.narrow(1, first, rows).copy_(at::where(below, corner.t(), corner));
    here.narrow(1, first + rows, beyond).copy_(entries.narrow(1, rows, beyond));
    mean.narrow(0, first + rows, beyond)
        .narrow(1, first, rows)
        .copy_(entries.narrow(1, rows, beyond).t());
    first += rows;
  }
  return mean;
}

void LibrarySums::read(int64_t first, int64_t rows, int64_t* into) const {
  const at::Tensor& block = blocks_[static_cast<size_t>(first / rows_of_a_block)];
  const int64_t row = first % rows_of_a_block, here = std::min(rows, block.size(0) - row);
  const at::Tensor part =
      block.narrow(0, row, here).narrow(1, row, columns_ - first).t().contiguous().to(at::kCPU);
  const auto* from = part.const_data_ptr<int64_t>();
  for (int64_t j = 0; j < part.size(0); ++j)
    for (int64_t r = 0; r < here; ++r) into[j * rows + r] += *from++;
}

}  // namespace selfcal
