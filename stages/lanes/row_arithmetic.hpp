// The arithmetic of a row, written once for all that number.hpp calls a `Number`. For files that
// are compiled without contraction.
#pragma once
#include "stages/lanes/lanes.hpp"
#include "stages/lanes/number.hpp"

namespace selfcal::lanes {
namespace {

/// Keeps the sign, exponent and `24 - dropped` bits of the significand; rounds to nearest, ties to
/// even.
template <class Number>
constexpr Number round_significand(Number value, int dropped) {
  const auto whole = bits(value);
  const auto half = ((whole >> dropped) & 1u) + ((1u << (dropped - 1)) - 1u);
  return from_bits<Number>((whole + half) & ~((1u << dropped) - 1u));
}

template <class Number>
constexpr Number round_to(Format format, Number value) {
  if (format == Format::float32) return value;
  if (format == Format::bfloat16) return round_significand(value, 16);
  // float16: below 2^-14 its unit is 2^-24, which is that of float32 just above 0.5; above 65504 it
  // is infinite.
  const Number size = absolute(value), tiny = (size + 0.75f) - 0.75f;
  const Number rounded = size < 0x1p-14f ? tiny : round_significand(size, 13);
  const Number finite = rounded > 65504.0f ? all<Number>(infinity) : rounded;
  return from_bits<Number>(bits(finite) | (bits(value) & 0x80000000u));
}

/// value^2.4 for value >= 0, to about 1e-6; zero where it would underflow.
template <class Number>
constexpr Number power_2_4(Number value) {
  // log2: mantissa in [sqrt 1/2, sqrt 2), then the series of atanh. The exponent, plus 127, is put
  // into the lowest bits of 2^23.
  const auto whole = bits(value) + (0x3f800000u - 0x3f3504f3u);
  const Number exponent = from_bits<Number>((whole >> 23) + 0x4b000000u) - (0x1p23f + 127);
  const Number mantissa = from_bits<Number>((whole & 0x007fffffu) + 0x3f3504f3u);
  const Number s = (mantissa - 1.0f) / (mantissa + 1.0f), t = s * s;
  const Number series = (((t * (1.0f / 9) + 1.0f / 7) * t + 1.0f / 5) * t + 1.0f / 3) * t + 1.0f;
  const Number logarithm = exponent + s * series * 2.88539008f;
  // exp2: whole part into the exponent, the rest by Taylor's series.
  const Number power = clamped(logarithm * 2.4f, -126, 127), integer = power + magic;
  const Number f = (power - (integer - magic)) * 0.693147181f;
  Number result = f * (1.0f / 5040) + 1.0f / 720;
  result = result * f + 1.0f / 120;
  result = result * f + 1.0f / 24;
  result = result * f + 1.0f / 6;
  result = result * f + 0.5f;
  result = result * f + 1.0f;
  result = result * f + 1.0f;
  const Number scaled = from_bits<Number>(bits(result) + (bits(integer) << 23));
  return power > -126.0f ? scaled : Number{};
}

template <class Number>
struct ScaleAndZero {
  Number scale, zero;
};

template <class Number>
constexpr Number code_of(const Grid& grid, Number weight, const ScaleAndZero<Number>& parameters) {
  // Clamped first, so that round_even holds for any weight.
  const Number steps = clamped(weight / parameters.scale, -1024, 1024);
  return clamped(round_even(steps) + parameters.zero, 0, grid.largest_code);
}

template <class Number>
constexpr Number weight_of(const Grid& grid, Number code, const ScaleAndZero<Number>& parameters) {
  return round_to(grid.weight, (code - parameters.zero) * parameters.scale);
}

template <class Number>
struct Range {
  Number low, high;
};

/// Of the weights weight(first) ... weight(last - 1).
template <class Number, class Weight>
constexpr Range<Number> range_of(const Grid& grid, const Weight& weight, int64_t first,
                                 int64_t last) {
  Number low{}, high{};
  for (int64_t j = first; j < last; ++j) {
    low = smaller(low, weight(j));
    high = larger(high, weight(j));
  }
  if (grid.symmetric) {
    // A row without negative weights keeps low = 0, as in the published code.
    high = larger(high, -low);
    low = low < 0.0f ? -high : low;
  }
  const auto empty = (low == 0.0f) & (high == 0.0f);
  return {empty ? all<Number>(-1) : low, empty ? all<Number>(1) : high};
}

template <class Number>
constexpr ScaleAndZero<Number> parameters_of(const Grid& grid, const Range<Number>& range) {
  // Weights too small for the format still need a step.
  const float smallest = grid.scale == Format::float16    ? 0x1p-24f
                         : grid.scale == Format::bfloat16 ? 0x1p-133f
                                                          : 0x1p-149f;
  const Number scale = larger(round_to(grid.scale, (range.high - range.low) / grid.largest_code),
                              all<Number>(smallest));
  if (grid.symmetric) return {scale, all<Number>((grid.largest_code + 1) / 2)};
  const Number steps = smaller(-range.low / scale, all<Number>(1024));
  return {scale, smaller(round_even(steps), all<Number>(grid.largest_code))};
}

template <class Number, class Weight>
constexpr Number distortion(const Grid& grid, const Weight& weight, int64_t first, int64_t last,
                            const ScaleAndZero<Number>& tried) {
  Number total{};
  for (int64_t begin = first; begin < last; begin += 32) {
    Number sum{};
    for (int64_t j = begin; j < begin + 32 && j < last; ++j) {
      const Number code = code_of(grid, weight(j), tried);
      sum += power_2_4(absolute((code - tried.zero) * tried.scale - weight(j)));
    }
    total += sum;
  }
  return total;
}

/// Scale and zero (an integer) of a group, the weights weight(first) ... weight(last - 1). A range
/// that overflows gives an infinite scale.
template <class Number, class Weight>
constexpr ScaleAndZero<Number> scale_and_zero(const Grid& grid, const Weight& weight, int64_t first,
                                              int64_t last) {
  const auto range = range_of<Number>(grid, weight, first, last);
  ScaleAndZero<Number> best = parameters_of(grid, range);
  if (!grid.search) return best;
  constexpr int steps = 100, tried = 80;
  Number least = all<Number>(infinity);
  for (int i = 0; i < tried; ++i) {
    const float share = static_cast<float>(1 - static_cast<double>(i) / steps);
    const ScaleAndZero<Number> candidate =
        parameters_of(grid, Range<Number>{range.low * share, range.high * share});
    const Number error = distortion(grid, weight, first, last, candidate);
    const auto better = error < least;
    least = better ? error : least;
    best.scale = better ? candidate.scale : best.scale;
    best.zero = better ? candidate.zero : best.zero;
  }
  return best;
}

}  // namespace
}  // namespace selfcal::lanes
