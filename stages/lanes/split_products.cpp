// The products of numbers of 16 bits on matrix units (lanes.hpp): a float32 is split into the
// nearest bfloat16 and the one nearest to what that leaves, and of their products all but that of
// the two rests are added up in float32. What is left out, and the splitting itself, is about 2^-18
// of each product, as whole numbers are off by 2^-16 of a row's largest.
#include "stages/kernels/cpu/amx/tiles.hpp"
#include "stages/kernels/cpu/vector/vector.hpp"
#include "stages/lanes/lanes.hpp"

namespace selfcal::lanes::amx {
namespace {

using namespace selfcal::amx;
using kernels::SELFCAL_INSTRUCTIONS::Floats;
using kernels::SELFCAL_INSTRUCTIONS::Words;

constexpr int64_t columns_of_panel = most_rows, step = 32;  // the last: numbers along the sum
constexpr int64_t words_of_tile = tile_bytes / 4, words_of_step = 4 * words_of_tile;

/// Pairs of numbers as pairs of their bfloat16 and of the rests'.
struct Split {
  Words high, low;
};

/// The bits of the nearest bfloat16, ties to even, above 16 zeros.
Words rounded(Floats value) {
  const Words word = Words(value);
  return (word + 0x7fff + (word >> 16 & 1)) & 0xffff0000;
}

Split split(Floats even, Floats odd) {
  const Words even_high = rounded(even), odd_high = rounded(odd);
  const Words even_low = rounded(even - Floats(even_high)),
              odd_low = rounded(odd - Floats(odd_high));
  return {odd_high | even_high >> 16, odd_low | even_low >> 16};
}

/// 16 pairs of 16 columns as [column][pair].
void store_columns(Floats (&pairs)[tile_columns], int32_t* tile) {
  kernels::SELFCAL_INSTRUCTIONS::transpose_square(pairs);
  for (int64_t j = 0; j < tile_columns; ++j)
    _mm512_storeu_si512(tile + j * tile_columns, __m512i(pairs[j]));
}

/// Panels: for each step a tile of 16 columns and another one, [column][pair], then those of the
/// rests.
void short_panels(const float* matrix, int64_t stride, int64_t depth, int64_t columns,
                  const float* factors, int32_t* panels, float* steps) {
  for (int64_t j = 0; j < columns; ++j) steps[j] = 1;
  for (int64_t panel = 0; panel < columns; panel += columns_of_panel)
    for (int64_t k = 0; k < depth; k += step, panels += words_of_step)
      for (int64_t half = 0; half < 2; ++half) {
        const int64_t first = panel + half * tile_columns, rest = columns - first;
        const auto here = static_cast<__mmask16>((1ll << (rest > tile_columns ? tile_columns
                                                          : rest > 0          ? rest
                                                                              : 0)) -
                                                 1);
        const auto read = [&](int64_t row) {
          if (row >= depth) return Floats{};
          return Floats(_mm512_maskz_loadu_ps(here, matrix + row * stride + first)) * -factors[row];
        };
        Floats high[tile_columns], low[tile_columns];
        for (int64_t pair = 0; pair < step / 2; ++pair) {
          const Split numbers = split(read(k + 2 * pair), read(k + 2 * pair + 1));
          high[pair] = Floats(numbers.high);
          low[pair] = Floats(numbers.low);
        }
        int32_t* const tile = panels + half * words_of_tile;
        store_columns(high, tile);
        store_columns(low, tile + 2 * words_of_tile);
      }
}

/// Numbers: for each step [pair][row], then the rests'.
void short_tile(const float* tile, int64_t depth, const float* factors, int32_t* numbers,
                float* steps) {
  for (int64_t row = 0; row < rows; ++row) steps[row] = 1;
  for (int64_t k = 0; k < depth; k += step, numbers += words_of_step)
    for (int64_t pair = 0; pair < step / 2; ++pair)
      for (int64_t row = 0; row < rows; row += tile_columns) {
        const auto read = [&](int64_t column) {
          if (column >= depth) return Floats{};
          return Floats(_mm512_loadu_ps(tile + column * rows + row)) * factors[column];
        };
        const Split pairs = split(read(k + 2 * pair), read(k + 2 * pair + 1));
        _mm512_storeu_si512(numbers + pair * rows + row, __m512i(pairs.high));
        _mm512_storeu_si512(numbers + 2 * words_of_tile + pair * rows + row, __m512i(pairs.low));
      }
}

void load_panel(const int32_t* part, bool lower_too) {
  _tile_loadd(4, part, 64);
  if (lower_too) _tile_loadd(5, part + words_of_tile, 64);
}

void load_numbers(const int32_t* part) {
  _tile_loadd(6, part, rows * 4);
  _tile_loadd(7, part + tile_columns, rows * 4);
}

void add_products(bool lower_too) {
  _tile_dpbf16ps(0, 4, 6);
  _tile_dpbf16ps(1, 4, 7);
  if (!lower_too) return;
  _tile_dpbf16ps(2, 5, 6);
  _tile_dpbf16ps(3, 5, 7);
}

void subtract_short(const int32_t* panels, const float* /*column_steps*/, int64_t depth,
                    int64_t columns, const int32_t* numbers, const float* /*row_steps*/,
                    float* tile) {
  const int64_t steps = (depth + step - 1) / step;
  const int64_t panel_bytes = steps * words_of_step * static_cast<int64_t>(sizeof(int32_t));
  for_sums(columns, tile, rows, [&](int64_t, const Sums& sums) {
    // (Rectangles are read one after the other, so that the last panel is followed by the next's.)
    Ahead ahead(panels + steps * words_of_step, panel_bytes, 2 * steps);
    load_sums(sums);
    for (int64_t k = 0; k < steps; ++k, panels += words_of_step) {
      const int32_t *high = numbers + k * words_of_step, *low = high + 2 * words_of_tile;
      load_panel(panels, sums.lower_too);
      load_numbers(low);
      add_products(sums.lower_too);
      ahead.fetch();
      load_numbers(high);
      add_products(sums.lower_too);
      ahead.fetch();
      load_panel(panels + 2 * words_of_tile, sums.lower_too);
      add_products(sums.lower_too);
    }
    store_sums(sums);
  });
}

}  // namespace

/// `kernels`, with these products.
Kernels with_split_products(const Kernels& kernels);

Kernels with_split_products(const Kernels& kernels) {
  Kernels split = kernels;
  split.instruction_set = "amx";
  split.short_columns = columns_of_panel;
  split.short_depth = step;
  split.short_words = 2;
  split.short_panels = short_panels;
  split.short_tile = short_tile;
  split.subtract_short = subtract_short;
  return split;
}

}  // namespace selfcal::lanes::amx
