// The arithmetic of one row, a weight at a time: what stages/lanes does for vectors of rows, in the
// same order and with the same roundings. Everything is constexpr, which makes it callable on the
// CPU and, by nvcc's --expt-relaxed-constexpr, in CUDA kernels. For files that are compiled without
// contraction; the one fused operation is written out.
#pragma once
#include <bit>
#include <cstdint>
#include <limits>

#include "stages/lanes/lanes.hpp"

namespace selfcal::by_row {

using lanes::Format;
using lanes::Grid;
using lanes::Pattern;

constexpr float smaller(float a, float b) { return a < b ? a : b; }
constexpr float larger(float a, float b) { return a > b ? a : b; }
constexpr uint32_t bits(float value) { return std::bit_cast<uint32_t>(value); }
constexpr float from_bits(uint32_t value) { return std::bit_cast<float>(value); }
constexpr float absolute(float value) { return from_bits(bits(value) & 0x7fffffffu); }
/// a * b + sum, rounded once. (A template, because the call is no constant to every compiler.)
template <class Float>
constexpr Float fused(Float a, Float b, Float sum) {
  return __builtin_fmaf(a, b, sum);
}
inline constexpr float infinity = std::numeric_limits<float>::infinity();

/// To the nearest integer, ties to even; |value| < 2^22.
constexpr float round_even(float value) {
  const float magic = 0x1.8p23f;
  return (value + magic) - magic;
}

/// Keeps the sign, exponent and `24 - dropped` bits of the significand; rounds to nearest, ties to
/// even.
constexpr float round_significand(float value, int dropped) {
  const uint32_t whole = bits(value);
  const uint32_t half = ((whole >> dropped) & 1u) + ((1u << (dropped - 1)) - 1u);
  return from_bits((whole + half) & ~((1u << dropped) - 1u));
}

constexpr float round_to(Format format, float value) {
  if (format == Format::float32) return value;
  if (format == Format::bfloat16) return round_significand(value, 16);
  // float16: below 2^-14 its unit is that of float32 just above 0.5.
  const float size = absolute(value), tiny = (size + 0.75f) - 0.75f;
  const float rounded = size < 0x1p-14f ? tiny : round_significand(size, 13);
  const float finite = rounded > 65504.0f ? infinity : rounded;
  return from_bits(bits(finite) | (bits(value) & 0x80000000u));
}

constexpr float code_of(const Grid& grid, float weight, float scale, float zero) {
  const float steps = smaller(larger(weight / scale, -1024.0f), 1024.0f);
  return smaller(larger(round_even(steps) + zero, 0.0f), grid.largest_code);
}

constexpr float weight_of(const Grid& grid, float code, float scale, float zero) {
  return round_to(grid.weight, (code - zero) * scale);
}

/// value^2.4 for value >= 0, to about 1e-6; zero where it would underflow.
constexpr float power_2_4(float value) {
  const uint32_t whole = bits(value) - 0x3f3504f3u;
  const int32_t exponent = static_cast<int32_t>(whole) >> 23;
  const float mantissa = from_bits((whole & 0x007fffffu) + 0x3f3504f3u);
  const float s = (mantissa - 1.0f) / (mantissa + 1.0f), t = s * s;
  const float series = (((t * (1.0f / 9) + 1.0f / 7) * t + 1.0f / 5) * t + 1.0f / 3) * t + 1.0f;
  const float logarithm = static_cast<float>(exponent) + s * series * 2.88539008f;
  const float power = smaller(larger(logarithm * 2.4f, -126.0f), 127.0f);
  const float integer = round_even(power), f = (power - integer) * 0.693147181f;
  float result = f * (1.0f / 5040) + 1.0f / 720;
  result = result * f + 1.0f / 120;
  result = result * f + 1.0f / 24;
  result = result * f + 1.0f / 6;
  result = result * f + 0.5f;
  result = result * f + 1.0f;
  result = result * f + 1.0f;
  const uint32_t scaled =
      bits(result) + (static_cast<uint32_t>(static_cast<int32_t>(integer)) << 23);
  return power > -126.0f ? from_bits(scaled) : 0.0f;
}

struct Range {
  float low, high;
};

struct ScaleAndZero {
  float scale, zero;
};

/// Of the weights row.weight(first) ... row.weight(last - 1).
template <class Row>
constexpr Range range_of(const Grid& grid, const Row& row, int64_t first, int64_t last) {
  float low = 0, high = 0;
  for (int64_t j = first; j < last; ++j) {
    low = smaller(low, row.weight(j));
    high = larger(high, row.weight(j));
  }
  if (grid.symmetric) {
    // A row without negative weights keeps low = 0, as in the published code.
    high = larger(high, -low);
    low = low < 0.0f ? -high : low;
  }
  const bool empty = low == 0.0f && high == 0.0f;
  return {empty ? -1.0f : low, empty ? 1.0f : high};
}

constexpr ScaleAndZero parameters_of(const Grid& grid, Range range) {
  // Weights too small for the format still need a step.
  const float smallest = grid.scale == Format::float16    ? 0x1p-24f
                         : grid.scale == Format::bfloat16 ? 0x1p-133f
                                                          : 0x1p-149f;
  const float scale =
      larger(round_to(grid.scale, (range.high - range.low) / grid.largest_code), smallest);
  if (grid.symmetric) return {scale, (grid.largest_code + 1) / 2};
  return {scale, smaller(round_even(smaller(-range.low / scale, 1024.0f)), grid.largest_code)};
}

template <class Row>
constexpr float distortion(const Grid& grid, const Row& row, int64_t first, int64_t last,
                           ScaleAndZero tried) {
  float total = 0;
  for (int64_t begin = first; begin < last; begin += 32) {
    float sum = 0;
    for (int64_t j = begin; j < begin + 32 && j < last; ++j) {
      const float weight = row.weight(j);
      const float code = code_of(grid, weight, tried.scale, tried.zero);
      sum += power_2_4(absolute((code - tried.zero) * tried.scale - weight));
    }
    total += sum;
  }
  return total;
}

/// Scale and zero of the columns [first, last) of a row (lanes::Kernels::find_scale).
template <class Row>
constexpr ScaleAndZero find_scale(const Grid& grid, const Row& row, int64_t first, int64_t last) {
  const Range range = range_of(grid, row, first, last);
  ScaleAndZero best = parameters_of(grid, range);
  if (!grid.search) return best;
  constexpr int steps = 100, tried = 80;
  float least = infinity;
  for (int i = 0; i < tried; ++i) {
    const float share = static_cast<float>(1 - static_cast<double>(i) / steps);
    const ScaleAndZero candidate = parameters_of(grid, {range.low * share, range.high * share});
    const float error = distortion(grid, row, first, last, candidate);
    if (error < least) {
      least = error;
      best = candidate;
    }
  }
  return best;
}

}  // namespace selfcal::by_row
