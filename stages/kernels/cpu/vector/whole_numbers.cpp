// Products of numbers that became 16-bit whole numbers times a step: two multiplications and their
// sum are one instruction where a float32 lane does one, and sums are exact, so their order is
// free. Rows of norm below 2^15.5 have products whose partial sums stay in 32 bits
// (Cauchy-Schwarz).
#include "stages/kernels/cpu/vector/kernels.hpp"
#include "stages/kernels/cpu/vector/map.hpp"
#include "stages/kernels/cpu/vector/runs_of_rows.hpp"

namespace selfcal::kernels::SELFCAL_INSTRUCTIONS {
namespace {

constexpr int panel_columns = 2 * width;

using HalfFloats = float __attribute__((vector_size(SELFCAL_VECTOR_BYTES / 2)));
using Doubles = double __attribute__((vector_size(SELFCAL_VECTOR_BYTES)));
struct Halved {
  HalfFloats low, high;
};
using Shorts = int16_t __attribute__((vector_size(SELFCAL_VECTOR_BYTES / 2)));

/// Each lane: the products of two pairs of 16-bit numbers, added.
SELFCAL_INLINE Integers multiply_pairs(Integers a, Integers b) {
#if defined(__AVX512BW__)
  return bits<Integers>(_mm512_madd_epi16(bits<__m512i>(a), bits<__m512i>(b)));
#elif defined(__AVX2__)
  return bits<Integers>(_mm256_madd_epi16(bits<__m256i>(a), bits<__m256i>(b)));
#elif defined(__SSE2__)
  return bits<Integers>(_mm_madd_epi16(bits<__m128i>(a), bits<__m128i>(b)));
#else
  return ((a << 16) >> 16) * ((b << 16) >> 16) + (a >> 16) * (b >> 16);
#endif
}

/// sum + multiply_pairs(a, b).
SELFCAL_INLINE Integers add_pairs(Integers sum, Integers a, Integers b) {
#if defined(__AVX512VNNI__)
  // (GCC 12 keeps sums in memory around the intrinsic.)
  asm("vpdpwssd %2, %1, %0" : "+v"(sum) : "v"(a), "v"(b));
  return sum;
#else
  return sum + multiply_pairs(a, b);
#endif
}

/// To the nearest, ties to even; |value| < 2^22.
SELFCAL_INLINE Integers nearest(Floats value) {
  const Floats magic = all(0x1.8p23f);
  return bits<Integers>(value + magic) - bits<Integers>(magic);
}

SELFCAL_INLINE Integers limited(Integers value) {
  const Integers most = 32767 - Integers{};
  value = value > most ? most : value;
  return value < -most ? -most : value;
}

/// Two vectors of whole numbers as 16-bit numbers one after the other.
SELFCAL_INLINE void write_halves(int16_t* to, Integers first, Integers second) {
#if defined(__AVX2__) && !defined(__AVX512BW__)
  const __m256i mixed = _mm256_packs_epi32(bits<__m256i>(first), bits<__m256i>(second));
  write(to, _mm256_permute4x64_epi64(mixed, 0xD8));
#else
  write(to, __builtin_convertvector(first, Shorts));
  write(to + width, __builtin_convertvector(second, Shorts));
#endif
}

/// The first whole vectors through body(i, numbers), then the rest, zeros after it.
template <class Stored, class Body>
SELFCAL_INLINE void for_vectors(const Stored* from, int64_t n, Body body) {
  int64_t i = 0;
  for (; i + width <= n; i += width) body(i, read_widened(from + i));
  if (i < n) body(i, read_some(from + i, n - i));
}

SELFCAL_INLINE float total(Floats lanes) {
  float sum = 0;
  for (int lane = 0; lane < width; ++lane) sum += lanes[lane];
  return sum;
}

template <class Stored>
float row_to_whole(const Stored* x, int64_t n, int16_t* to) {
  Integers largest = {};
  for_vectors(x, n, [&](int64_t, Floats v) {
    const Integers size = bits<Integers>(v) & 0x7fffffff;
    largest = size > largest ? size : largest;
  });
  int32_t most = 0;
  for (int lane = 0; lane < width; ++lane) most = largest[lane] > most ? largest[lane] : most;
  const auto size = bits<float>(most);
  float step = most < 0x7f800000 ? 0.0f : __builtin_nanf(""), factor = 0;
  if (size > 1e-30f && most < 0x7f800000) {
    const float inverse = 1 / size;
    Floats squares = {};
    for_vectors(x, n, [&](int64_t, Floats v) { squares += (v * inverse) * (v * inverse); });
    const float norm = __builtin_sqrtf(total(squares));  // in units of the largest, at least 1
    const float reach = norm > 46000.0f / 32767 ? 46000 / norm : 32767.0f;
    factor = reach * inverse;
    step = size / reach;
  }
  int64_t i = 0;
  for (; i + 2 * width <= n; i += 2 * width)
    write_halves(to + i, limited(nearest(read_widened(x + i) * factor)),
                 limited(nearest(read_widened(x + i + width) * factor)));
  for (; i % (2 * width) != 0 || i < n; ++i)
    to[i] = i < n && factor > 0
                ? static_cast<int16_t>(limited(nearest(all(widen(x[i])) * factor))[0])
                : int16_t{0};
  return step;
}

template <int rows>
void multiply_rows(int64_t pairs, const int32_t* a, int64_t a_rows, const int32_t* panel,
                   int32_t* c, int64_t c_stride, bool accumulate) {
  Integers sums[rows][2] = {};
#pragma GCC unroll 2
  for (int64_t k = 0; k < pairs; ++k, a += a_rows, panel += panel_columns) {
    const auto left = read<Integers>(panel), right = read<Integers>(panel + width);
#pragma GCC unroll 16
    for (int r = 0; r < rows; ++r) {
      const Integers pair = a[r] - Integers{};
      sums[r][0] = add_pairs(sums[r][0], pair, left);
      sums[r][1] = add_pairs(sums[r][1], pair, right);
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < rows; ++r) {
    int32_t* to = c + r * c_stride;
    write(to, accumulate ? read<Integers>(to) + sums[r][0] : sums[r][0]);
    write(to + width, accumulate ? read<Integers>(to + width) + sums[r][1] : sums[r][1]);
  }
}

/// The first `count` lanes. (GCC 12 moves a memcpy of them through general registers.)
template <int count>
SELFCAL_INLINE void write_first(int32_t* to, Floats vector) {
  static_assert(count >= width / 2);
  if constexpr (count >= width) {
    write(to, vector);
  } else {
    const auto halves = bits<Halved>(vector);
    write(to, halves.low);
    std::memcpy(to + width / 2, &halves.high, (count - width / 2) * sizeof(int32_t));
  }
}

/// `width` pairs of rows from `first` on: packed[k][row]; zeros from row `count` on.
template <int lanes, int first = 0>
SELFCAL_INLINE void pack_square(const int16_t* rows, int64_t stride, int64_t count,
                                int32_t* packed) {
  static const int16_t zeros[2 * width] = {};
  Floats square[width];
#pragma GCC unroll 16
  for (int i = 0; i < width; ++i)
    square[i] = read<Floats>(first + i < count ? rows + (first + i) * stride : zeros);
  transpose_square(square);
#pragma GCC unroll 16
  for (int k = 0; k < width; ++k) write_first<lanes - first>(packed + k * lanes + first, square[k]);
  if constexpr (first + width < lanes)
    pack_square<lanes, first + width>(rows, stride, count, packed);
}

/// `count` rows side by side, `lanes` of them.
template <int lanes>
void pack_rows(const int16_t* rows, int64_t stride, int64_t count, int64_t pairs, int32_t* packed) {
  for (int64_t k = 0; k < pairs; k += width)
    pack_square<lanes>(rows + 2 * k, stride, count, packed + k * lanes);
}

}  // namespace

float to_whole(const void* x, Number number, int64_t n, int16_t* to) {
  float step = 0;
  with_type(x, number, [&](const auto* from) { step = row_to_whole(from, n, to); });
  return step;
}

void pack_whole_rows(const int16_t* rows, int64_t stride, int64_t count, int64_t pairs,
                     int32_t* packed) {
  pack_rows<most_rows>(rows, stride, count, pairs, packed);
}

void pack_whole_panel(const int16_t* rows, int64_t stride, int64_t count, int64_t pairs,
                      int32_t* panel) {
  pack_rows<panel_columns>(rows, stride, count, pairs, panel);
}

void multiply_whole(int64_t rows, int64_t pairs, const int32_t* a, int64_t a_rows,
                    const int32_t* panel, int32_t* c, int64_t c_stride, bool accumulate) {
  for_runs_of_rows<most_rows>(rows, [&](auto count, int64_t row) {
    multiply_rows<count>(pairs, a + row, a_rows, panel, c + row * c_stride, c_stride, accumulate);
  });
}

void narrow_whole(const int32_t* sums, float step, const float* steps, const void* bias,
                  Number bias_number, int64_t n, void* y, Number number) {
  with_type(y, number, [&](auto* to) {
    for (int64_t i = 0; i < n; i += width) {
      const int64_t count = n - i < width ? n - i : width;
      Floats value = __builtin_convertvector(read<Integers>(sums + i), Floats) *
                     (step * read<Floats>(steps + i));
      if (bias != nullptr)
        with_type(bias, bias_number,
                  [&](const auto* shift) { value += read_some(shift + i, count); });
      if (count == width) {
        write_rounded(to + i, value);
      } else {
        write_some(to + i, value, count);
      }
    }
  });
}

void sum_squares(const Matrix& x, int64_t first, int64_t count, double* sums) {
  constexpr int64_t rows_at_once = 32;  // so that each cache line is fetched once
  for (int64_t i = 0; i < count; ++i) sums[i] = 0;
  with_type(x.data, x.number, [&](const auto* data) {
    for (int64_t row = 0; row < x.count; row += rows_at_once) {
      const int64_t end = row + rows_at_once < x.count ? row + rows_at_once : x.count;
      for (int64_t column = 0; column < count; column += width) {
        const int64_t here = count - column < width ? count - column : width;
        const auto* from = data + row * x.columns + first + column;
        Doubles low = {}, high = {};
        for (int64_t i = row; i < end; ++i, from += x.columns) {
          if (column == 0) __builtin_prefetch(from + rows_at_once * x.columns);
          const auto values =
              bits<Halved>(here == width ? read_widened(from) : read_some(from, here));
          const auto first_half = __builtin_convertvector(values.low, Doubles),
                     second_half = __builtin_convertvector(values.high, Doubles);
          low += first_half * first_half;
          high += second_half * second_half;
        }
        for (int64_t i = 0; i < here; ++i)
          sums[column + i] += i < width / 2 ? low[i] : high[i - width / 2];
      }
    }
  });
}

void sum_sizes(const Matrix& x, int64_t first, int64_t count, double* sums) {
  constexpr int64_t rows_at_once = 32;
  for (int64_t i = 0; i < count; ++i) sums[i] = 0;
  with_type(x.data, x.number, [&](const auto* data) {
    for (int64_t row = 0; row < x.count; row += rows_at_once) {
      const int64_t end = row + rows_at_once < x.count ? row + rows_at_once : x.count;
      for (int64_t column = 0; column < count; column += width) {
        const int64_t here = count - column < width ? count - column : width;
        const auto* from = data + row * x.columns + first + column;
        double running[width] = {};
        std::memcpy(running, sums + column, static_cast<size_t>(here) * sizeof(double));
        Doubles low = read<Doubles>(running), high = read<Doubles>(running + width / 2);
        for (int64_t i = row; i < end; ++i, from += x.columns) {
          if (column == 0) __builtin_prefetch(from + rows_at_once * x.columns);
          const Floats values = here == width ? read_widened(from) : read_some(from, here);
          const auto sizes = bits<Halved>(bits<Integers>(values) & 0x7fffffff);
          low += __builtin_convertvector(sizes.low, Doubles);
          high += __builtin_convertvector(sizes.high, Doubles);
        }
        write(running, low);
        write(running + width / 2, high);
        std::memcpy(sums + column, running, static_cast<size_t>(here) * sizeof(double));
      }
    }
  });
}

bool columns_to_whole(const Matrix& x, int64_t first, int64_t count, const float* factors,
                      int32_t* panel) {
  constexpr int64_t rows_ahead = 4 * width;
  const int64_t pairs = whole_row(x.count, width) / 2;
  Integers most = {}, least = {};
  with_type(x.data, x.number, [&](const auto* data) {
    for (int64_t k = 0; k < pairs; ++k, panel += panel_columns)
      for (int64_t column = 0; column < panel_columns; column += width) {
        const int64_t here = count - column < width ? count - column : width;
        const auto read_row = [&](int64_t row) -> Integers {
          if (row >= x.count || here <= 0) return Integers{};
          const auto* from = data + row * x.columns + first + column;
          if (column == 0) __builtin_prefetch(from + rows_ahead * x.columns);
          const Floats values = here == width ? read_widened(from) : read_some(from, here);
          const Integers number = nearest(values * read<Floats>(factors + column));
          most = number > most ? number : most;
          least = number < least ? number : least;
          return limited(number);
        };
        const Integers even = read_row(2 * k), odd = read_row(2 * k + 1);
        write(panel + column, (odd << 16) | (even & 0xffff));
      }
  });
  constexpr int32_t bound = 33000;  // a number alone may round to 2^15
  for (int lane = 0; lane < width; ++lane)
    if (most[lane] > bound || least[lane] < -bound) return false;
  return true;
}

}  // namespace selfcal::kernels::SELFCAL_INSTRUCTIONS
