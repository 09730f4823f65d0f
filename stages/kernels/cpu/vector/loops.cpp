// Loops over contiguous numbers. The numbers that do not fill a vector go through the same vector
// arithmetic, so that a result does not depend on a number's place.
#include "stages/kernels/cpu/vector/kernels.hpp"
#include "stages/kernels/cpu/vector/map.hpp"

namespace selfcal::kernels::SELFCAL_INSTRUCTIONS {
namespace {

/// The sum of value(from[i]), value(0) = 0, in two vectors of partial sums.
template <class Value, class Source>
SELFCAL_INLINE float sum(int64_t n, Value value, const Source* from) {
  Floats even = {}, odd = {};
  int64_t i = 0;
  for (; i + 2 * width <= n; i += 2 * width) {
    even += value(read_widened(from + i));
    odd += value(read_widened(from + i + width));
  }
  for (; i + width <= n; i += width) even += value(read_widened(from + i));
  if (i < n) odd += value(read_some(from + i, n - i));
  even += odd;
  float total = 0;
  for (int lane = 0; lane < width; ++lane) total += even[lane];
  return total;
}

SELFCAL_INLINE float square_root(float value) { return __builtin_sqrtf(value); }

}  // namespace

void widen(const void* x, Number number, int64_t n, float factor, float* y) {
  with_type(x, number, [&](const auto* from) {
    map(
        n, [=](Floats v) { return factor * v; }, y, from);
  });
}

void narrow(const float* x, const void* bias, Number bias_number, int64_t n, float factor, void* y,
            Number number) {
  with_type(y, number, [&](auto* to) {
    if (bias == nullptr)
      return map(
          n, [=](Floats v) { return factor * v; }, to, x);
    with_type(bias, bias_number, [&](const auto* shift) {
      map(
          n, [=](Floats v, Floats b) { return factor * v + b; }, to, x, shift);
    });
  });
}

/// (Rows may be so short that a call of narrow() for each would take as long as they do.)
void narrow_rows(int64_t rows, int64_t n, const float* x, int64_t x_stride, const void* bias,
                 Number bias_number, void* y, int64_t y_stride, Number number) {
  with_type(y, number, [&](auto* to) {
    with_type(bias, bias_number, [&](const auto* shift) {
      for (int64_t row = 0; row < rows; ++row, x += x_stride, to += y_stride) {
        if (shift == nullptr)
          map(
              n, [](Floats v) { return v; }, to, x);
        else
          map(
              n, [](Floats v, Floats b) { return v + b; }, to, x, shift);
      }
    });
  });
}

void split_in_two(const float* x, int64_t n, uint16_t* high, uint16_t* low) {
  map(
      n, [](Floats v) { return v; }, high, x);
  map(
      n, [](Floats v, Floats h) { return v - h; }, low, x, high);
}

void add(const void* a, const void* b, Number number, int64_t n, void* y) {
  with_type(a, number, [&](const auto* left) {
    using Stored = stored_type<decltype(left)>;
    map(
        n, [](Floats p, Floats q) { return p + q; }, static_cast<Stored*>(y), left,
        static_cast<const Stored*>(b));
  });
}

void divide_sums(const int64_t* sums, int64_t n, double divisor, const double* units, double factor,
                 float* y) {
  for (int64_t i = 0; i < n; ++i)
    y[i] = static_cast<float>(static_cast<double>(sums[i]) / divisor * (units[i] * factor));
}

void rms_norm_row(const void* x, const void* weight, Number number, int64_t n, float epsilon,
                  float offset, void* y) {
  with_type(x, number, [&](const auto* from) {
    using Stored = stored_type<decltype(from)>;
    const float squares = sum(
        n, [](Floats v) { return v * v; }, from);
    const float scale = 1.0f / square_root(squares / static_cast<float>(n) + epsilon);
    map(
        n, [=](Floats v, Floats w) { return v * scale * (offset + w); }, static_cast<Stored*>(y),
        from, static_cast<const Stored*>(weight));
  });
}

void layer_norm_row(const void* x, const void* weight, const void* bias, Number number, int64_t n,
                    float epsilon, void* y) {
  with_type(x, number, [&](const auto* from) {
    using Stored = stored_type<decltype(from)>;
    const float count = static_cast<float>(n);
    const float mean = sum(
                           n, [](Floats v) { return v; }, from) /
                       count;
    const auto square = [=](auto v) { return (v - mean) * (v - mean); };
    const int64_t whole = n / width * width;
    float squares = sum(whole, square, from);
    for (int64_t i = whole; i < n; ++i) squares += square(widen(from[i]));
    const float scale = 1.0f / square_root(squares / count + epsilon);
    map(
        n, [=](Floats v, Floats w, Floats b) { return (v - mean) * scale * w + b; },
        static_cast<Stored*>(y), from, static_cast<const Stored*>(weight),
        static_cast<const Stored*>(bias));
  });
}

void rotate_head(void* x, Number number, const float* cosine, const float* sine, int64_t half) {
  with_type(x, number, [&](auto* first) {
    auto* second = first + half;
    int64_t i = 0;
    for (; i + width <= half; i += width) {
      const Floats a = read_widened(first + i), b = read_widened(second + i);
      const Floats c = read<Floats>(cosine + i), s = read<Floats>(sine + i);
      write_rounded(first + i, a * c - b * s);
      write_rounded(second + i, b * c + a * s);
    }
    if (i == half) return;
    const int64_t rest = half - i;
    const Floats a = read_some(first + i, rest), b = read_some(second + i, rest);
    const Floats c = read_some(cosine + i, rest), s = read_some(sine + i, rest);
    write_some(first + i, a * c - b * s, rest);
    write_some(second + i, b * c + a * s, rest);
  });
}

float weigh(float* scores, int64_t visible, int64_t count, float floor, float* total) {
  float largest = floor;
  float sums = 0;
  if (visible > 0) {
    const float found = maximum(scores, visible);
    largest = found < floor ? floor : found;
    Floats even = {};
    int64_t i = 0;
    for (; i + width <= visible; i += width) {
      const Floats weights = exponential(read<Floats>(scores + i) - largest);
      write(scores + i, weights);
      even += weights;
    }
    for (int lane = 0; lane < width; ++lane) sums += even[lane];
    if (i < visible) {
      write_some(scores + i, exponential(read_some(scores + i, visible - i) - largest),
                 visible - i);
      for (; i < visible; ++i) sums += scores[i];
    }
  }
  for (int64_t i = visible; i < count; ++i) scores[i] = 0;
  *total = sums;
  return largest;
}

bool all_finite16(const uint16_t* x, int64_t n, uint16_t exponent) {
  uint16_t full = 0;
  for (int64_t i = 0; i < n; ++i) full |= static_cast<uint16_t>((x[i] & exponent) == exponent);
  return full == 0;
}

bool all_finite32(const uint32_t* x, int64_t n, uint32_t exponent) {
  uint32_t full = 0;
  for (int64_t i = 0; i < n; ++i) full |= static_cast<uint32_t>((x[i] & exponent) == exponent);
  return full == 0;
}

}  // namespace selfcal::kernels::SELFCAL_INSTRUCTIONS
