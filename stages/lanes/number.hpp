// What the arithmetic of rows asks of a `Number`: a float in CUDA kernels and in their CPU twin, on
// CPUs a vector with a row in every lane. Beside these functions it has +, -, *, / and comparisons
// that ?: chooses by. Everything is constexpr, which makes it callable in CUDA kernels by nvcc's
// --expt-relaxed-constexpr, and has internal linkage, because the same names are compiled for
// several instruction sets.
#pragma once
#include <cstdint>
#include <limits>

namespace selfcal::lanes {
namespace {

/// Unsigned integers of 32 bits, as many as a number has lanes.
template <class Number>
struct BitsOf;
template <>
struct BitsOf<float> {
  using type = uint32_t;
};

template <class Number>
using Bits = typename BitsOf<Number>::type;

template <class Number>
constexpr Bits<Number> bits(Number value) {
  return __builtin_bit_cast(Bits<Number>, value);
}

template <class Number>
constexpr Number from_bits(Bits<Number> value) {
  return __builtin_bit_cast(Number, value);
}

template <class Number>
constexpr Number all(float value) {
  return value - Number{};  // (a sum would turn -0 into 0)
}

template <class Number>
constexpr Number smaller(Number a, Number b) {
  return a < b ? a : b;
}

template <class Number>
constexpr Number larger(Number a, Number b) {
  return a > b ? a : b;
}

template <class Number>
constexpr Number clamped(Number value, float low, float high) {
  return smaller(larger(value, all<Number>(low)), all<Number>(high));
}

template <class Number>
constexpr Number absolute(Number value) {
  return from_bits<Number>(bits(value) & 0x7fffffffu);
}

/// Whether a comparison holds in any lane.
template <class Mask>
constexpr bool any(Mask mask) {
  if constexpr (sizeof(Mask) < sizeof(uint64_t)) {
    return mask;
  } else {
    struct Words {
      uint64_t words[sizeof(Mask) / sizeof(uint64_t)];
    };
    const Words whole = __builtin_bit_cast(Words, mask);
    uint64_t found = 0;
    for (const uint64_t word : whole.words) found |= word;
    return found != 0;
  }
}

/// Added to |value| < 2^22, leaves no room for a fraction; the lowest bits are the integer then.
constexpr float magic = 0x1.8p23f;
constexpr float infinity = std::numeric_limits<float>::infinity();

/// To the nearest integer, ties to even; |value| < 2^22.
template <class Number>
constexpr Number round_even(Number value) {
  return (value + magic) - magic;
}

}  // namespace
}  // namespace selfcal::lanes
