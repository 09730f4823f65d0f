// Panels of pairs of bfloat16 numbers, by AVX-512: for files that are compiled for it.
#pragma once
#include <immintrin.h>

#include "stages/kernels/cpu/matrix_units.hpp"

namespace selfcal::kernels {
namespace {

/// The first `columns` of 32 numbers; zeros without a row.
inline __m512i first_columns_of(const uint16_t* x, int64_t columns) {
  if (columns == MatrixUnits::panel_columns) return _mm512_loadu_si512(x);
  return _mm512_maskz_loadu_epi16(static_cast<__mmask32>((1ull << columns) - 1), x);
}

inline void pack_pairs_of_columns(const uint16_t* x, int64_t stride, int64_t rows, int64_t columns,
                                  int32_t* panel) {
  // Of a row's and the next one's 32 numbers, pairs of those of the first 16 columns, then of the
  // others.
  alignas(64) uint16_t first[32], second[32];
  for (int64_t i = 0; i < 16; ++i) {
    first[2 * i] = static_cast<uint16_t>(i);
    first[2 * i + 1] = static_cast<uint16_t>(32 + i);
    second[2 * i] = static_cast<uint16_t>(16 + i);
    second[2 * i + 1] = static_cast<uint16_t>(48 + i);
  }
  const __m512i first_columns = _mm512_load_si512(first), others = _mm512_load_si512(second);
  for (int64_t row = 0; row < padded_depth(rows); row += 2, panel += MatrixUnits::panel_columns) {
    const uint16_t* from = x + row * stride;
    const __m512i even = first_columns_of(from, row < rows ? columns : 0),
                  odd = first_columns_of(from + stride, row + 1 < rows ? columns : 0);
    _mm512_storeu_si512(panel, _mm512_permutex2var_epi16(even, first_columns, odd));
    _mm512_storeu_si512(panel + 16, _mm512_permutex2var_epi16(even, others, odd));
  }
}

}  // namespace
}  // namespace selfcal::kernels
