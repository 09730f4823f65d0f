// Vectors of the instruction set that a file is compiled for. Only for cpu/vector/*.cpp, which use
// no library templates.
#pragma once
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include <cstdint>
#include <cstring>

#include "stages/kernels/cpu/vector_kernels.hpp"

namespace selfcal::kernels::SELFCAL_INSTRUCTIONS {

inline constexpr int width = SELFCAL_VECTOR_BYTES / 4;
/// Rows of a matrix product that have two vectors of sums each in 32 or 16 registers.
inline constexpr int most_rows = width == 16 ? 12 : 6;
using Floats = float __attribute__((vector_size(SELFCAL_VECTOR_BYTES)));
using Integers = int32_t __attribute__((vector_size(SELFCAL_VECTOR_BYTES)));
using Words = uint32_t __attribute__((vector_size(SELFCAL_VECTOR_BYTES)));
using HalfWords = uint16_t __attribute__((vector_size(SELFCAL_VECTOR_BYTES / 2)));

#define SELFCAL_INLINE static inline __attribute__((always_inline))

template <class Target, class Source>
SELFCAL_INLINE Target bits(Source source) {
  static_assert(sizeof(Target) == sizeof(Source));
  return __builtin_bit_cast(Target, source);
}

template <class Vector>
SELFCAL_INLINE Vector read(const void* from) {
  Vector vector;
  std::memcpy(&vector, from, sizeof(vector));
  return vector;
}
template <class Vector>
SELFCAL_INLINE void write(void* to, Vector vector) {
  std::memcpy(to, &vector, sizeof(vector));
}

SELFCAL_INLINE Floats all(float value) { return value - Floats{}; }

SELFCAL_INLINE float widen(uint16_t bfloat16) { return bits<float>(uint32_t{bfloat16} << 16); }
SELFCAL_INLINE float widen(float value) { return value; }
/// (GCC 12 makes four instructions of __builtin_convertvector where the processor has one.)
SELFCAL_INLINE Words zero_extended(HalfWords half_words) {
#if defined(__AVX512F__)
  // (The form without a mask has an operand that GCC 12 warns of as uninitialised.)
  return bits<Words>(_mm512_maskz_cvtepu16_epi32(0xFFFF, bits<__m256i>(half_words)));
#elif defined(__AVX2__)
  return bits<Words>(_mm256_cvtepu16_epi32(bits<__m128i>(half_words)));
#else
  return __builtin_convertvector(half_words, Words);
#endif
}
SELFCAL_INLINE Floats read_widened(const uint16_t* from) {
  return bits<Floats>(zero_extended(read<HalfWords>(from)) << 16);
}
SELFCAL_INLINE Floats read_widened(const float* from) { return read<Floats>(from); }

/// To nearest, ties to even; a NaN stays one.
SELFCAL_INLINE uint16_t round_to_bfloat16(float value) {
  const auto word = bits<uint32_t>(value);
  if (value != value) return static_cast<uint16_t>((word >> 16) | 0x40);
  return static_cast<uint16_t>((word + 0x7FFF + ((word >> 16) & 1)) >> 16);
}
SELFCAL_INLINE void write_rounded(float* to, Floats value) { write(to, value); }
SELFCAL_INLINE void write_rounded(uint16_t* to, Floats value) {
  const auto word = bits<Words>(value);
  const Words rounded = (word + 0x7FFF + ((word >> 16) & 1)) >> 16;
  const Words kept = (word >> 16) | 0x40;
  const auto is_nan = bits<Words>(value != value);
  write(to, __builtin_convertvector((is_nan & kept) | (~is_nan & rounded), HalfWords));
}
SELFCAL_INLINE void write_rounded(float* to, float value) { *to = value; }
SELFCAL_INLINE void write_rounded(uint16_t* to, float value) { *to = round_to_bfloat16(value); }

/// Calls body(data as a typed pointer).
template <class Body>
SELFCAL_INLINE void with_type(const void* data, Number number, Body body) {
  if (number == Number::float32) {
    body(static_cast<const float*>(data));
  } else {
    body(static_cast<const uint16_t*>(data));
  }
}
template <class Body>
SELFCAL_INLINE void with_type(void* data, Number number, Body body) {
  if (number == Number::float32) {
    body(static_cast<float*>(data));
  } else {
    body(static_cast<uint16_t*>(data));
  }
}

/// Transposes a square of `width` vectors in registers, swapping ever larger off-diagonal squares
/// (Eklundh 1972).
SELFCAL_INLINE void transpose_square(Floats (&square)[width]) {
  Integers lane;
  for (int j = 0; j < width; ++j) lane[j] = j;
#pragma GCC unroll 8
  for (int size = 1; size < width; size *= 2) {
    const Integers upper = (lane & size) != 0;
    const Integers first = (upper & (lane - size + width)) | (~upper & lane);
    const Integers second = (upper & (lane + width)) | (~upper & (lane + size));
#pragma GCC unroll 16
    for (int i = 0; i < width; ++i) {
      if (i & size) continue;
      const Floats a = square[i], b = square[i + size];
      square[i] = __builtin_shuffle(a, b, first);
      square[i + size] = __builtin_shuffle(a, b, second);
    }
  }
}

/// exp(x) for x <= 0 within 2 units in the last place; 0 below -86, where the result's exponent
/// would run out.
SELFCAL_INLINE Floats exponential(Floats x) {
  const Floats nearest = all(0x1.8p23f);  // adding it rounds to an integer
  const Floats shifted = x * 1.44269504f + nearest;
  const Floats power = shifted - nearest;
  const Floats rest =
      (x - power * 0.693359375f) + power * 2.12194440e-4f;  // ln 2 in two parts (Cephes expf)
  Floats sum = all(1.9875691500e-4f);
  sum = sum * rest + 1.3981999507e-3f;
  sum = sum * rest + 8.3334519073e-3f;
  sum = sum * rest + 4.1665795894e-2f;
  sum = sum * rest + 1.6666665459e-1f;
  sum = sum * rest + 5.0000001201e-1f;
  sum = sum * rest * rest + rest + 1.0f;
  const Words scale = (bits<Words>(shifted) - bits<Words>(nearest)) << 23;
  return bits<Floats>((bits<Words>(sum) + scale) & bits<Words>(x >= -86.0f));
}

}  // namespace selfcal::kernels::SELFCAL_INSTRUCTIONS
