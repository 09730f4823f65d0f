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

/// values^2.4 for values >= 0, to about 1e-6: the cubes of value * root, root = value^-0.2. Several
/// side by side, since each waits for its own results.
template <class Number, int count>
constexpr void raise_to_2_4(Number (&values)[count]) {
  Number roots[count]{}, misses[count]{};
  const auto find_misses = [&] {
    for (int i = 0; i < count; ++i) {
      const Number square = roots[i] * roots[i];
      misses[i] = 1.0f - values[i] * roots[i] * (square * square);
    }
  };
  // Its exponent over -5 (819 is 2^12 / 5) makes a root to 3 %, a polynomial to 1e-4, Newton's step
  // the rest.
  for (int i = 0; i < count; ++i)
    roots[i] = from_bits<Number>(0x4c2a78c0u - (bits(values[i]) >> 12) * 819u);
  find_misses();
  for (int i = 0; i < count; ++i)
    roots[i] *= (misses[i] * 0.122609f + 0.2016505f) * misses[i] + 0.999988f;
  find_misses();
  for (int i = 0; i < count; ++i) {
    const Number power = values[i] * roots[i], refined = power + power * (misses[i] * 0.2f);
    values[i] = refined * refined * refined;
  }
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

/// sum error(j)^2.4 over first <= j < last, or, where that is not below `bound` for any lane, part
/// of the sum.
template <class Number, class Error>
constexpr Number sum_of_powers(const Error& error, int64_t first, int64_t last, Number bound) {
  constexpr int together = 4;
  Number total{};
  for (int64_t begin = first; begin < last && any(total < bound); begin += together) {
    Number values[together]{};
    for (int i = 0; i < together; ++i)
      if (begin + i < last) values[i] = error(begin + i);
    raise_to_2_4(values);
    total += (values[0] + values[1]) + (values[2] + values[3]);
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
  constexpr int hundredths = 100, tried = 80, between_looks = 8;
  Number least = all<Number>(infinity);
  for (int i = 0; i < tried; ++i) {
    const float share = static_cast<float>(1 - static_cast<double>(i) / hundredths);
    const ScaleAndZero<Number> candidate =
        parameters_of(grid, Range<Number>{range.low * share, range.high * share});
    const Number low = -candidate.zero, high = grid.largest_code - candidate.zero;
    const auto cut_off = [&](int64_t j) {
      const Number value = weight(j);
      return absolute(smaller(larger(value, low * candidate.scale), high * candidate.scale) -
                      value);
    };
    // What a range cuts off, a smaller one cuts off too. (Without symmetry it may lie elsewhere.)
    if (grid.symmetric && i > 0 && i % between_looks == 0 &&
        !any(sum_of_powers(cut_off, first, last, least) < 1.001f * least))
      break;
    const Number inverse = 1.0f / candidate.scale;
    const auto rounding_error = [&](int64_t j) {
      const Number value = weight(j);
      const Number steps = round_even(smaller(larger(value * inverse, low), high));
      return absolute(steps * candidate.scale - value);
    };
    const Number error = sum_of_powers(rounding_error, first, last, least);
    const auto better = error < least;
    least = better ? error : least;
    best.scale = better ? candidate.scale : best.scale;
    best.zero = better ? candidate.zero : best.zero;
  }
  return best;
}

}  // namespace
}  // namespace selfcal::lanes
