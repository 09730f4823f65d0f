// A vector of float32 lanes in the compiler's own vector type, as wide as the instruction set that
// is compiled for. Everything here has internal linkage: the same names are compiled for several
// instruction sets.
#pragma once
#include <cstdint>

#include "stages/lanes/lanes.hpp"

namespace selfcal::lanes {
namespace {

#if defined(__AVX512F__)
constexpr int width = 16;
#elif defined(__AVX2__)
constexpr int width = 8;
#else
constexpr int width = 4;
#endif

/// Columns of a packed panel: two vectors of rows times these fill the registers.
constexpr int panel = width == 16 ? 12 : 6;

using Vector = float __attribute__((vector_size(width * sizeof(float))));
using Integers = int32_t __attribute__((vector_size(width * sizeof(int32_t))));
using Unaligned = float __attribute__((vector_size(width * sizeof(float)), aligned(4), may_alias));
using UnalignedIntegers =
    int32_t __attribute__((vector_size(width * sizeof(int32_t)), aligned(4), may_alias));

inline Vector load(const float* from) { return *reinterpret_cast<const Unaligned*>(from); }
inline void store(float* into, Vector value) { *reinterpret_cast<Unaligned*>(into) = value; }
inline Integers load(const int32_t* from) {
  return *reinterpret_cast<const UnalignedIntegers*>(from);
}
inline void store(int32_t* into, Integers value) {
  *reinterpret_cast<UnalignedIntegers*>(into) = value;
}
inline Vector all(float value) { return value - Vector{}; }  // (a sum would turn -0 into 0)

inline Vector smaller(Vector a, Vector b) { return a < b ? a : b; }
inline Vector larger(Vector a, Vector b) { return a > b ? a : b; }
inline Integers bits(Vector value) { return reinterpret_cast<Integers>(value); }
inline Vector from_bits(Integers value) { return reinterpret_cast<Vector>(value); }
inline Vector absolute(Vector value) { return from_bits(bits(value) & 0x7fffffff); }

/// To the nearest integer, ties to even; |value| < 2^22.
inline Vector round_even(Vector value) {
  const Vector magic = all(0x1.8p23f);
  return (value + magic) - magic;
}

/// Keeps the sign, exponent and `24 - dropped` bits of the significand; rounds to nearest, ties to
/// even.
inline Vector round_significand(Vector value, int dropped) {
  const Integers whole = bits(value);
  const Integers half = ((whole >> dropped) & 1) + ((1 << (dropped - 1)) - 1);
  return from_bits((whole + half) & -(1 << dropped));
}

inline Vector round_to(Format format, Vector value) {
  if (format == Format::float32) return value;
  if (format == Format::bfloat16) return round_significand(value, 16);
  // float16: below 2^-14 its unit is 2^-24, which is that of float32 just above 0.5; above 65504 it
  // is infinite.
  const Vector magic = all(0.75f), size = absolute(value);
  const Vector tiny = (size + magic) - magic;
  const Vector rounded = size < all(0x1p-14f) ? tiny : round_significand(size, 13);
  const Vector finite = rounded > all(65504.0f) ? all(__builtin_inff()) : rounded;
  return from_bits(bits(finite) | (bits(value) & int32_t(0x80000000)));
}

}  // namespace
}  // namespace selfcal::lanes
