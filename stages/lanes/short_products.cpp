// Products of packed panels with tiles, in whole numbers of 16 bits: two multiplications and their
// sum are one instruction where a float32 lane does one. Columns of a panel and rows of a tile are
// each in units of their own norm, which is below 2^15.5, so that no partial sum leaves 32 bits
// (Cauchy-Schwarz); a product's error is about 1e-5 of the two norms'. Compiled with contraction.
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include <cstring>

#include "stages/lanes/vector.hpp"

namespace selfcal::lanes::SELFCAL_INSTRUCTION_SET {
namespace {

constexpr int vectors = 2;  // vectors of rows in one pass
constexpr float largest_norm = 46000, largest_number = 32767;

/// Each lane: sum + the products of two pairs of 16-bit numbers.
inline __attribute__((always_inline)) Integers add_pairs(Integers sum, Integers a, Integers b) {
#if defined(__AVX512VNNI__)
  // (GCC 12 keeps sums in memory around the intrinsic.)
  asm("vpdpwssd %2, %1, %0" : "+v"(sum) : "v"(a), "v"(b));
  return sum;
#elif defined(__AVX512BW__)
  return sum + Integers(_mm512_madd_epi16(__m512i(a), __m512i(b)));
#elif defined(__AVX2__)
  return sum + Integers(_mm256_madd_epi16(__m256i(a), __m256i(b)));
#elif defined(__SSE2__)
  return sum + Integers(_mm_madd_epi16(__m128i(a), __m128i(b)));
#else
  return sum + ((a << 16) >> 16) * ((b << 16) >> 16) + (a >> 16) * (b >> 16);
#endif
}

/// Numbers times `inverse` are at most 1 in size, times `reach` they become whole, and a whole one
/// is worth a step.
struct Unit {
  Vector inverse, reach, step;

  Integers whole(Vector value) const {
    const Vector limit = all(largest_number);
    const Vector scaled = smaller(larger(value * inverse * reach, -limit), limit);
    return Integers(bits(scaled + magic) - bits(magic));  // to the nearest, ties to even
  }
};

Vector square_root(Vector value) {
  for (int lane = 0; lane < width; ++lane) value[lane] = __builtin_sqrtf(value[lane]);
  return value;
}

/// Of `depth` vectors, the k-th read by value(k); a lane that is not finite has a step of NaN.
template <class Value>
inline __attribute__((always_inline)) Unit find_unit(int64_t depth, Value value) {
  Bits<Vector> largest{};
  for (int64_t k = 0; k < depth; ++k) {
    const Bits<Vector> size = bits(absolute(value(k)));
    largest = size > largest ? size : largest;
  }
  const Vector most = from_bits<Vector>(largest);
  const Integers finite = largest < 0x7f800000u, usable = finite & (most >= all(0x1p-126f));
  const Vector inverse = usable ? 1.0f / most : all(0.0f);
  Vector squares{};
  for (int64_t k = 0; k < depth; ++k) {
    const Vector x = value(k) * inverse;
    squares += x * x;
  }
  const Vector reach = smaller(largest_norm / square_root(squares), all(largest_number));
  const Vector none = finite ? all(0.0f) : all(__builtin_nanf(""));
  return {inverse, usable ? reach : all(0.0f), usable ? most / reach : none};
}

inline Integers pair_of(Integers even, Integers odd) { return (odd << 16) | (even & 0xffff); }

/// `count` < width numbers, zeros after them.
inline Vector load_some(const float* from, int64_t count) {
  float lanes[width] = {};
  std::memcpy(lanes, from, static_cast<size_t>(count) * sizeof(float));
  return load(lanes);
}

template <int count>
void subtract_panel(const int32_t* panels, int64_t pairs, const int32_t* other,
                    const float* column_steps, const float* row_steps, float* tile) {
  Integers sum[count][vectors] = {};
  for (int64_t k = 0; k < pairs; ++k) {
    Integers factor[vectors];
    for (int v = 0; v < vectors; ++v) factor[v] = load(other + k * rows + v * width);
#pragma GCC unroll 12
    for (int j = 0; j < count; ++j) {
      const Integers entry = panels[k * panel + j] - Integers{};
#pragma GCC unroll 2
      for (int v = 0; v < vectors; ++v) sum[j][v] = add_pairs(sum[j][v], entry, factor[v]);
    }
  }
#pragma GCC unroll 12
  for (int j = 0; j < count; ++j) {
#pragma GCC unroll 2
    for (int v = 0; v < vectors; ++v) {
      float* at = tile + j * rows + v * width;
      const Vector step = column_steps[j] * load(row_steps + v * width);
      store(at, load(at) - __builtin_convertvector(sum[j][v], Vector) * step);
    }
  }
}

template <int count>
void subtract_rows(const int32_t* panels, int64_t pairs, const int32_t* other,
                   const float* column_steps, const float* row_steps, float* tile) {
  for (int64_t row = 0; row < rows; row += vectors * width)
    subtract_panel<count>(panels, pairs, other + row, column_steps, row_steps + row, tile + row);
}

/// The last panel, which is not full.
template <int count>
void subtract_rest(const int32_t* panels, int64_t pairs, int64_t columns, const int32_t* other,
                   const float* column_steps, const float* row_steps, float* tile) {
  if constexpr (count > 0) {
    if (columns == count)
      return subtract_rows<count>(panels, pairs, other, column_steps, row_steps, tile);
    subtract_rest<count - 1>(panels, pairs, columns, other, column_steps, row_steps, tile);
  }
}

}  // namespace

void short_panels(const float* matrix, int64_t stride, int64_t depth, int64_t columns,
                  const float* factors, int32_t* panels, float* steps) {
  // As many columns at a time as fill vectors and panels.
  constexpr int64_t together = 3 * width;
  static_assert(together % panel == 0);
  const int64_t pairs = (depth + 1) / 2;
  for (int64_t first = 0; first < columns; first += together, panels += together * pairs) {
    const int64_t here = columns - first < together ? columns - first : together;
    const auto value = [&](int64_t k, int64_t j) {
      const float* from = matrix + k * stride + first + j;
      return (here - j >= width ? load(from) : load_some(from, here - j)) * factors[k];
    };
    const int64_t panels_here = (here + panel - 1) / panel;
    Unit units[together / width];
    for (int64_t j = 0; j < here; j += width) {
      const Unit unit = find_unit(depth, [&](int64_t k) { return value(k, j); });
      units[j / width] = unit;
      for (int64_t i = 0; i < width && j + i < here; ++i) steps[first + j + i] = unit.step[i];
    }
    for (int64_t k = 0; k < depth; k += 2) {
      int32_t row[together];
      for (int64_t j = 0; j < here; j += width) {
        const Unit& unit = units[j / width];
        const Integers even = unit.whole(value(k, j)),
                       odd = k + 1 < depth ? unit.whole(value(k + 1, j)) : Integers{};
        store(row + j, pair_of(even, odd));
      }
      for (int64_t i = 0; i < panels_here; ++i)
        std::memcpy(panels + (i * pairs + k / 2) * panel, row + i * panel, sizeof(int32_t) * panel);
    }
  }
}

void short_tile(const float* tile, int64_t depth, const float* factors, int32_t* numbers,
                float* steps) {
  for (int64_t row = 0; row < rows; row += width) {
    const auto value = [&](int64_t k) { return load(tile + k * rows + row) * factors[k]; };
    const Unit unit = find_unit(depth, value);
    store(steps + row, unit.step);
    for (int64_t k = 0; k < depth; k += 2) {
      const Integers even = unit.whole(value(k)),
                     odd = k + 1 < depth ? unit.whole(value(k + 1)) : Integers{};
      store(numbers + k / 2 * rows + row, pair_of(even, odd));
    }
  }
}

void subtract_short(const int32_t* panels, const float* column_steps, int64_t depth,
                    int64_t columns, const int32_t* numbers, const float* row_steps, float* tile) {
  const int64_t pairs = (depth + 1) / 2;
  for (; columns >= panel;
       columns -= panel, panels += pairs * panel, column_steps += panel, tile += panel * rows)
    subtract_rows<panel>(panels, pairs, numbers, column_steps, row_steps, tile);
  subtract_rest<panel - 1>(panels, pairs, columns, numbers, column_steps, row_steps, tile);
}

}  // namespace selfcal::lanes::SELFCAL_INSTRUCTION_SET
