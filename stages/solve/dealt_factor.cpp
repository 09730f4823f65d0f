#include "stages/solve/dealt_factor.hpp"

#include <ATen/ATen.h>

#include <algorithm>
#include <numeric>
#include <utility>

#include "stages/kernels/cpu/tiles.hpp"

namespace selfcal {
namespace {

constexpr int64_t strip = Cholesky<float>::strip;
constexpr int64_t rows_joined = 64;  // at a time

/// Columns from the right, and where their floats start among all ranks'.
struct Strip {
  int64_t first, count, at;
};

/// By rank: every size-th strip.
std::vector<std::vector<Strip>> deal_strips(int64_t columns, int size) {
  std::vector<std::vector<Strip>> dealt(static_cast<size_t>(size));
  int64_t at = 0;
  for (int rank = 0; rank < size; ++rank)
    for (int64_t first = rank * strip; first < columns; first += size * strip) {
      const int64_t count = std::min(strip, columns - first);
      dealt[static_cast<size_t>(rank)].push_back({first, count, at});
      at += (columns - first) * count;
    }
  return dealt;
}

int64_t floats_of(const std::vector<Strip>& strips, int64_t columns) {
  int64_t floats = 0;
  for (const auto& [first, count, at] : strips) floats += (columns - first) * count;
  return floats;
}

}  // namespace

DealtFactor::DealtFactor(const at::Tensor& hessian, const MethodSettings& settings, FactorTeam team,
                         const kernels::Context& context)
    : team_(std::move(team)), context_(context), damped_(damp(hessian, settings, context)) {}

bool DealtFactor::factorise() {
  cholesky_.emplace(columns(), damped_.entries, context_, team_);
  return cholesky_->succeeded();
}

std::vector<std::span<std::byte>> DealtFactor::invert() {
  const auto dealt = deal_strips(columns(), team_.size);
  std::vector<int64_t> floats;
  for (const auto& strips : dealt) floats.push_back(floats_of(strips, columns()));
  strips_ = at::empty({std::reduce(floats.begin(), floats.end())}, at::kFloat);
  auto* into = strips_.mutable_data_ptr<float>();
  const auto& own = dealt[static_cast<size_t>(team_.rank)];
  kernels::for_tiles(context_, std::ssize(own), [&](int64_t index) {
    const auto& [first, count, at] = own[static_cast<size_t>(index)];
    cholesky_->invert_strip(first, count, into + at, count);
  });
  cholesky_.reset();
  std::vector<std::span<std::byte>> parts;
  for (const int64_t count : floats) {
    parts.push_back(std::as_writable_bytes(std::span(into, static_cast<size_t>(count))));
    into += count;
  }
  return parts;
}

std::optional<Factor> DealtFactor::join() {
  const int64_t n = columns();
  at::Tensor upper = at::empty({n, n}, at::kFloat);
  auto* into = upper.mutable_data_ptr<float>();
  const auto dealt = deal_strips(n, team_.size);
  kernels::for_ranges(context_, n, rows_joined, [&](int64_t begin, int64_t rows) {
    for (const auto& strips : dealt)
      for (const auto& [first, count, at] : strips)
        for (int64_t row = begin; row < begin + rows; ++row) {
          float* there = into + row * n + n - first - count;
          if (row < n - first)
            std::copy_n(strips_.const_data_ptr<float>() + at + row * count, count, there);
          else
            std::fill_n(there, count, 0.0f);
        }
  });
  strips_.reset();
  if (!kernels::all_finite(context_, upper)) return std::nullopt;
  damped_.factor.upper = std::move(upper);
  return std::move(damped_.factor);
}

}  // namespace selfcal
