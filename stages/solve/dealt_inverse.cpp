#include "stages/solve/dealt_inverse.hpp"

#include <ATen/ATen.h>

#include <algorithm>

#include "stages/kernels/cpu/tiles.hpp"
#include "stages/solve/cholesky.hpp"

namespace selfcal {
namespace {

constexpr int64_t strip = Cholesky<float>::strip;

/// A strip of a part: columns from the right, and where its floats start.
struct Strip {
  int64_t first, count, at;
};

std::vector<Strip> strips_of(int64_t columns, int64_t part, int64_t parts) {
  std::vector<Strip> strips;
  int64_t at = 0;
  for (int64_t first = part * strip; first < columns; first += parts * strip) {
    const int64_t count = std::min(strip, columns - first);
    strips.push_back({first, count, at});
    at += (columns - first) * count;
  }
  return strips;
}

int64_t floats_of(const std::vector<Strip>& strips, int64_t columns) {
  return strips.empty() ? 0
                        : strips.back().at + (columns - strips.back().first) * strips.back().count;
}

}  // namespace

at::Tensor pack_lower(const at::Tensor& lower) {
  const int64_t n = lower.size(0);
  at::Tensor packed = at::empty({n * (n + 1) / 2}, at::kFloat);
  float* into = packed.mutable_data_ptr<float>();
  const float* from = lower.const_data_ptr<float>();
  for (int64_t i = 0; i < n; ++i) into = std::copy_n(from + i * n, i + 1, into);
  return packed;
}

at::Tensor unpack_lower(const at::Tensor& packed, int64_t columns) {
  at::Tensor lower = at::empty({columns, columns}, at::kFloat);
  const float* from = packed.const_data_ptr<float>();
  for (int64_t i = 0; i < columns; from += ++i)
    std::copy_n(from, i + 1, lower.mutable_data_ptr<float>() + i * columns);
  return lower;
}

at::Tensor invert_part(const LowerFactor& factor, int part, int parts,
                       const kernels::Context& context) {
  const int64_t n = factor.lower.size(0);
  const auto strips = strips_of(n, part, parts);
  at::Tensor inverse = at::empty({floats_of(strips, n)}, at::kFloat);
  const auto cholesky = Cholesky<float>::of(factor.lower.mutable_data_ptr<float>(), n, context);
  float* into = inverse.mutable_data_ptr<float>();
  kernels::for_tiles(context, static_cast<int64_t>(strips.size()), [&](int64_t index) {
    const auto& [first, count, at] = strips[static_cast<size_t>(index)];
    cholesky.invert_strip(first, count, into + at, count);
  });
  return inverse;
}

at::Tensor join_parts(const std::vector<std::span<const float>>& parts, int64_t columns,
                      const kernels::Context& context) {
  at::Tensor upper = at::empty({columns, columns}, at::kFloat);
  float* into = upper.mutable_data_ptr<float>();
  for (size_t part = 0; part < parts.size(); ++part) {
    const auto strips =
        strips_of(columns, static_cast<int64_t>(part), static_cast<int64_t>(parts.size()));
    kernels::for_tiles(context, static_cast<int64_t>(strips.size()), [&](int64_t index) {
      const auto& [first, count, at] = strips[static_cast<size_t>(index)];
      const float* from = parts[part].data() + at;
      for (int64_t row = 0; row < columns; ++row) {
        float* there = into + row * columns + columns - first - count;
        if (row < columns - first)
          std::copy_n(from + row * count, count, there);
        else
          std::fill_n(there, count, 0.0f);
      }
    });
  }
  return upper;
}

}  // namespace selfcal
