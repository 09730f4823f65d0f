// Products of pairs of bfloat16 numbers by vector instructions (AVX512-BF16).
#include "stages/kernels/cpu/pair_panels.hpp"

namespace selfcal::kernels::bfloat16_pairs {
namespace {

constexpr int lanes = 16;         // sums of a vector, or pairs
constexpr int rows_at_once = 12;  // whose sums fill the registers, two vectors each
constexpr int64_t pairs_of_a_line = 16;

__m512bh pairs_at(const int32_t* from) { return (__m512bh)_mm512_loadu_si512(from); }

/// The same pair in all lanes.
__m512bh pair_in_all(const uint16_t* from) {
  int32_t pair = 0;
  __builtin_memcpy(&pair, from, sizeof pair);
  return (__m512bh)_mm512_set1_epi32(pair);
}

/// c[rows][vectors * lanes] (+)= a panel. The same pairs of the rows after these are fetched into
/// the second-level cache: in the first there is no room for them.
template <int rows, int vectors>
void multiply_rows(int64_t pairs, const uint16_t* a, int64_t a_stride, const int32_t* panel,
                   float* c, int64_t c_stride, bool accumulate) {
  constexpr int second_level = 2;
  __m512 sums[rows][vectors];
#pragma GCC unroll 12
  for (int r = 0; r < rows; ++r)
#pragma GCC unroll 2
    for (int v = 0; v < vectors; ++v)
      sums[r][v] = accumulate ? _mm512_loadu_ps(c + r * c_stride + v * lanes) : _mm512_setzero_ps();
  // Four rows are in reach of one address and the stride: one for each would not fit the registers.
  constexpr int addresses = (rows + 3) / 4;
  const uint16_t* at[addresses];
  for (int i = 0; i < addresses; ++i) at[i] = a + 4 * i * a_stride;
  for (int64_t pair = 0; pair < pairs; ++pair, panel += MatrixUnits::panel_columns) {
    if (pair % pairs_of_a_line == 0)
#pragma GCC unroll 12
      for (int r = 0; r < rows; ++r)
        __builtin_prefetch(a + (rows + r) * a_stride + 2 * pair, 0, second_level);
    __m512bh column[vectors];
#pragma GCC unroll 2
    for (int v = 0; v < vectors; ++v) column[v] = pairs_at(panel + v * lanes);
#pragma GCC unroll 12
    for (int r = 0; r < rows; ++r) {
      const __m512bh other = pair_in_all(at[r / 4] + r % 4 * a_stride);
#pragma GCC unroll 2
      for (int v = 0; v < vectors; ++v) sums[r][v] = _mm512_dpbf16_ps(sums[r][v], column[v], other);
    }
#pragma GCC unroll 3
    for (int i = 0; i < addresses; ++i) at[i] += 2;
  }
#pragma GCC unroll 12
  for (int r = 0; r < rows; ++r)
#pragma GCC unroll 2
    for (int v = 0; v < vectors; ++v) _mm512_storeu_ps(c + r * c_stride + v * lanes, sums[r][v]);
}

/// `count` rows, at most `rows`.
template <int rows, int vectors>
void multiply_up_to(int64_t count, int64_t pairs, const uint16_t* a, int64_t a_stride,
                    const int32_t* panel, float* c, int64_t c_stride, bool accumulate) {
  if (count == rows)
    multiply_rows<rows, vectors>(pairs, a, a_stride, panel, c, c_stride, accumulate);
  else if constexpr (rows > 1)
    multiply_up_to<rows - 1, vectors>(count, pairs, a, a_stride, panel, c, c_stride, accumulate);
}

template <int vectors>
void multiply(int64_t rows, int64_t depth, const uint16_t* a, int64_t a_stride,
              const int32_t* panel, float* c, int64_t c_stride, bool accumulate, const int32_t*) {
  for (; rows > 0; rows -= rows_at_once, a += rows_at_once * a_stride, c += rows_at_once * c_stride)
    multiply_up_to<rows_at_once, vectors>(rows < rows_at_once ? rows : rows_at_once, depth / 2, a,
                                          a_stride, panel, c, c_stride, accumulate);
}

}  // namespace

extern const MatrixUnits units;
const MatrixUnits units = {"avx512bf16", false, multiply<2>, multiply<1>, pack_pairs_of_columns};

}  // namespace selfcal::kernels::bfloat16_pairs
