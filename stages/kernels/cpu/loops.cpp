#include "stages/kernels/cpu/loops.hpp"

#include <cmath>

// The widest variant that the processor runs is picked when the program starts. Loop bodies are
// inlined into each.
#define SELFCAL_VARIANTS \
  __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#define SELFCAL_INLINE __attribute__((always_inline)) inline

namespace selfcal::kernels {
namespace {

/// Sums run in 16 lanes on every instruction set, so that their order never depends on alignment.
constexpr int64_t lanes = 16;
typedef float Lanes __attribute__((vector_size(lanes * sizeof(float))));

SELFCAL_INLINE float load(const float* x) { return *x; }
SELFCAL_INLINE float load(const BFloat16* x) {
  return __builtin_bit_cast(float, uint32_t{x->x} << 16);
}

SELFCAL_INLINE void store(float value, float* y) { *y = value; }
SELFCAL_INLINE void store(float value, BFloat16* y) {
  const uint32_t bits = __builtin_bit_cast(uint32_t, value);
  const uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  y->x = static_cast<uint16_t>(value == value ? rounded : 0x7fc0);
}

/// exp(x) within 2 ulp, without branches: 2^n e^r, |r| <= ln(2)/2, e^r by the polynomial of Cephes'
/// expf.
SELFCAL_INLINE float exponential(float x) {
  x = -87.0f > x ? -87.0f : x;  // in this order a NaN stays one
  x = 88.0f < x ? 88.0f : x;
  const float shifted =
      x * 1.44269504f + 12582912.0f;  // rounds to an integer, kept in the low mantissa bits
  const float n = shifted - 12582912.0f;
  const float r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * (r * r) + r + 1.0f;
  return __builtin_bit_cast(
      float, __builtin_bit_cast(uint32_t, p) + (__builtin_bit_cast(uint32_t, shifted) << 23));
}

/// Adds the lanes of value(0) ... value(n - 1).
template <class Value>
SELFCAL_INLINE float sum(int64_t n, Value value) {
  Lanes total = {};
  int64_t i = 0;
  for (; i + lanes <= n; i += lanes) {
    Lanes next;
    for (int64_t lane = 0; lane < lanes; ++lane) next[lane] = value(i + lane);
    total += next;
  }
  float rest = 0;
  for (; i < n; ++i) rest += value(i);
  for (int64_t width = lanes / 2; width > 0; width /= 2)
    for (int64_t lane = 0; lane < width; ++lane) total[lane] += total[lane + width];
  return total[0] + rest;
}

template <class X>
SELFCAL_INLINE void widen_any(const X* x, int64_t n, float factor, float* y) {
  for (int64_t i = 0; i < n; ++i) y[i] = factor * load(x + i);
}

template <class B, class Y>
SELFCAL_INLINE void narrow_any(const float* x, const B* bias, int64_t n, float factor, Y* y) {
  if (bias) {
    for (int64_t i = 0; i < n; ++i) store(factor * x[i] + load(bias + i), y + i);
  } else {
    for (int64_t i = 0; i < n; ++i) store(factor * x[i], y + i);
  }
}

template <class T>
SELFCAL_INLINE void rms_norm_any(const T* x, const T* weight, int64_t n, float epsilon,
                                 float offset, T* y) {
  const float squares = sum(n, [x](int64_t i) { return load(x + i) * load(x + i); });
  const float scale = 1.0f / std::sqrt(squares / static_cast<float>(n) + epsilon);
  for (int64_t i = 0; i < n; ++i) store(load(x + i) * scale * (offset + load(weight + i)), y + i);
}

template <class T>
SELFCAL_INLINE void silu_multiply_any(const T* gate, const T* up, int64_t n, T* y) {
  for (int64_t i = 0; i < n; ++i) {
    const float g = load(gate + i);
    store(g / (1.0f + exponential(-g)) * load(up + i), y + i);
  }
}

template <class T>
SELFCAL_INLINE void add_any(const T* a, const T* b, int64_t n, T* y) {
  for (int64_t i = 0; i < n; ++i) store(load(a + i) + load(b + i), y + i);
}

template <class T>
SELFCAL_INLINE void rotate_any(T* x, const float* cosine, const float* sine, int64_t half) {
  for (int64_t i = 0; i < half; ++i) {
    const float a = load(x + i), b = load(x + half + i);
    store(a * cosine[i] - b * sine[i], x + i);
    store(b * cosine[i] + a * sine[i], x + half + i);
  }
}

template <class Bits>
SELFCAL_INLINE bool any_exponent_full_any(const Bits* x, int64_t n, Bits exponent) {
  Bits found = 0;
  for (int64_t i = 0; i < n; ++i) found |= static_cast<Bits>((x[i] & exponent) == exponent ? 1 : 0);
  return found != 0;
}

}  // namespace

SELFCAL_VARIANTS void widen(const float* x, int64_t n, float factor, float* y) {
  widen_any(x, n, factor, y);
}
SELFCAL_VARIANTS void widen(const BFloat16* x, int64_t n, float factor, float* y) {
  widen_any(x, n, factor, y);
}

SELFCAL_VARIANTS void narrow(const float* x, const float* bias, int64_t n, float factor, float* y) {
  narrow_any(x, bias, n, factor, y);
}
SELFCAL_VARIANTS void narrow(const float* x, const BFloat16* bias, int64_t n, float factor,
                             BFloat16* y) {
  narrow_any(x, bias, n, factor, y);
}
SELFCAL_VARIANTS void narrow(const float* x, const float* bias, int64_t n, float factor,
                             BFloat16* y) {
  narrow_any(x, bias, n, factor, y);
}
SELFCAL_VARIANTS void narrow(const float* x, const BFloat16* bias, int64_t n, float factor,
                             float* y) {
  narrow_any(x, bias, n, factor, y);
}

SELFCAL_VARIANTS void rms_norm_row(const float* x, const float* weight, int64_t n, float epsilon,
                                   float offset, float* y) {
  rms_norm_any(x, weight, n, epsilon, offset, y);
}
SELFCAL_VARIANTS void rms_norm_row(const BFloat16* x, const BFloat16* weight, int64_t n,
                                   float epsilon, float offset, BFloat16* y) {
  rms_norm_any(x, weight, n, epsilon, offset, y);
}

SELFCAL_VARIANTS void silu_multiply_loop(const float* gate, const float* up, int64_t n, float* y) {
  silu_multiply_any(gate, up, n, y);
}
SELFCAL_VARIANTS void silu_multiply_loop(const BFloat16* gate, const BFloat16* up, int64_t n,
                                         BFloat16* y) {
  silu_multiply_any(gate, up, n, y);
}

SELFCAL_VARIANTS void add_loop(const float* a, const float* b, int64_t n, float* y) {
  add_any(a, b, n, y);
}
SELFCAL_VARIANTS void add_loop(const BFloat16* a, const BFloat16* b, int64_t n, BFloat16* y) {
  add_any(a, b, n, y);
}

SELFCAL_VARIANTS void rotate_head(float* x, const float* cosine, const float* sine, int64_t half) {
  rotate_any(x, cosine, sine, half);
}
SELFCAL_VARIANTS void rotate_head(BFloat16* x, const float* cosine, const float* sine,
                                  int64_t half) {
  rotate_any(x, cosine, sine, half);
}

SELFCAL_VARIANTS float maximum(const float* x, int64_t n) {
  float largest[lanes];
  for (float& value : largest) value = x[0];
  int64_t i = 0;
  for (; i + lanes <= n; i += lanes)
    for (int64_t lane = 0; lane < lanes; ++lane)
      largest[lane] = x[i + lane] > largest[lane] ? x[i + lane] : largest[lane];
  for (; i < n; ++i) largest[0] = x[i] > largest[0] ? x[i] : largest[0];
  for (const float value : largest) largest[0] = value > largest[0] ? value : largest[0];
  return largest[0];
}

SELFCAL_VARIANTS float exponentials(float* x, int64_t n, float shift) {
  for (int64_t i = 0; i < n; ++i) x[i] = exponential(x[i] - shift);
  return sum(n, [x](int64_t i) { return x[i]; });
}

SELFCAL_VARIANTS void scale_in_place(float* x, int64_t n, float factor) {
  for (int64_t i = 0; i < n; ++i) x[i] *= factor;
}

SELFCAL_VARIANTS bool any_exponent_full(const uint32_t* x, int64_t n, uint32_t exponent) {
  return any_exponent_full_any(x, n, exponent);
}
SELFCAL_VARIANTS bool any_exponent_full(const uint16_t* x, int64_t n, uint16_t exponent) {
  return any_exponent_full_any(x, n, exponent);
}

}  // namespace selfcal::kernels
