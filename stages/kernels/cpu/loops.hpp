// Vector loops of one thread over contiguous elements, compiled for several instruction sets and
// chosen at run time. Arithmetic is float32; bfloat16 is widened when read and rounded to nearest
// even when written.
#pragma once
#include <c10/util/BFloat16.h>

#include <cstdint>

namespace selfcal::kernels {

using c10::BFloat16;

/// y = factor * x in float32.
void widen(const float* x, int64_t n, float factor, float* y);
void widen(const BFloat16* x, int64_t n, float factor, float* y);

/// y = factor * x + bias in y's type; bias may be null.
void narrow(const float* x, const float* bias, int64_t n, float factor, float* y);
void narrow(const float* x, const BFloat16* bias, int64_t n, float factor, BFloat16* y);
void narrow(const float* x, const float* bias, int64_t n, float factor, BFloat16* y);
void narrow(const float* x, const BFloat16* bias, int64_t n, float factor, float* y);

/// One row of rms_norm: y = x / sqrt(mean(x^2) + epsilon) * (offset + weight).
void rms_norm_row(const float* x, const float* weight, int64_t n, float epsilon, float offset,
                  float* y);
void rms_norm_row(const BFloat16* x, const BFloat16* weight, int64_t n, float epsilon, float offset,
                  BFloat16* y);

/// y = silu(gate) * up.
void silu_multiply_loop(const float* gate, const float* up, int64_t n, float* y);
void silu_multiply_loop(const BFloat16* gate, const BFloat16* up, int64_t n, BFloat16* y);

/// y = a + b.
void add_loop(const float* a, const float* b, int64_t n, float* y);
void add_loop(const BFloat16* a, const BFloat16* b, int64_t n, BFloat16* y);

/// Rotates one head in place: pairs (x[i], x[half + i]) by the angle whose cosine and sine are
/// given.
void rotate_head(float* x, const float* cosine, const float* sine, int64_t half);
void rotate_head(BFloat16* x, const float* cosine, const float* sine, int64_t half);

/// Largest of n >= 1 elements.
float maximum(const float* x, int64_t n);
/// x = exp(x - shift) in place; returns the sum.
float exponentials(float* x, int64_t n, float shift);
/// x = factor * x in place.
void scale_in_place(float* x, int64_t n, float factor);

/// Whether an entry has all the bits of `exponent` set, which is how IEEE numbers say NaN or
/// infinite.
bool any_exponent_full(const uint32_t* x, int64_t n, uint32_t exponent);
bool any_exponent_full(const uint16_t* x, int64_t n, uint16_t exponent);

}  // namespace selfcal::kernels
