// Products of pairs of bfloat16 numbers by vector instructions (AVX512-BF16).
#include "stages/kernels/cpu/bfloat16_pairs/two_of_four.hpp"
#include "stages/kernels/cpu/pair_panels.hpp"

namespace selfcal::kernels::bfloat16_pairs {
namespace {

constexpr int rows_at_once = 12;  // whose sums fill the registers, two vectors each
constexpr int numbers_of_a_line = 32;
constexpr int second_level = 2;  // cache

/// What a panel holds of two numbers along the sum: both.
struct AllPairs {
  static constexpr int numbers = 2;
  using Column = __m512bh;
  using Row = __m512bh;

  static Column column(const int32_t* panel) { return pairs_at(panel); }
  /// The same in all lanes.
  static Row row(const uint16_t* a) {
    int32_t pair = 0;
    __builtin_memcpy(&pair, a, sizeof pair);
    return (__m512bh)_mm512_set1_epi32(pair);
  }
  static __m512 add(__m512 sum, const Column& column, const Row& row) {
    return _mm512_dpbf16_ps(sum, column, row);
  }
};

/// Of four: the two that are kept, and where they stood.
struct TwoOfFour {
  static constexpr int numbers = 4;
  struct Column {
    __m512bh pairs;
    __m512i bytes;  // of four numbers
  };
  using Row = __m512i;

  static Column column(const int32_t* panel) {
    return {pairs_at(panel), _mm512_loadu_si512(panel + MatrixUnits::panel_columns)};
  }
  static Row row(const uint16_t* a) {
    int64_t four = 0;
    __builtin_memcpy(&four, a, sizeof four);
    return _mm512_set1_epi64(four);
  }
  static __m512 add(__m512 sum, const Column& column, const Row& row) {
    return _mm512_dpbf16_ps(sum, column.pairs, (__m512bh)_mm512_shuffle_epi8(row, column.bytes));
  }
};

/// c[rows][vectors * lanes] (+)= a panel. The same numbers of the rows after these are fetched into
/// the second-level cache: in the first there is no room for them.
template <class Step, int rows, int vectors>
void multiply_rows(int64_t depth, const uint16_t* a, int64_t a_stride, const int32_t* panel,
                   float* c, int64_t c_stride, bool accumulate) {
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
  for (int64_t k = 0; k < depth; k += Step::numbers) {
    if (k % numbers_of_a_line == 0)
#pragma GCC unroll 12
      for (int r = 0; r < rows; ++r)
        __builtin_prefetch(a + (rows + r) * a_stride + k, 0, second_level);
    typename Step::Column column[vectors];
#pragma GCC unroll 2
    for (int v = 0; v < vectors; ++v) column[v] = Step::column(panel + v * lanes);
    panel += Step::numbers / 2 * MatrixUnits::panel_columns;
#pragma GCC unroll 12
    for (int r = 0; r < rows; ++r) {
      const typename Step::Row row = Step::row(at[r / 4] + r % 4 * a_stride);
#pragma GCC unroll 2
      for (int v = 0; v < vectors; ++v) sums[r][v] = Step::add(sums[r][v], column[v], row);
    }
#pragma GCC unroll 3
    for (int i = 0; i < addresses; ++i) at[i] += Step::numbers;
  }
#pragma GCC unroll 12
  for (int r = 0; r < rows; ++r)
#pragma GCC unroll 2
    for (int v = 0; v < vectors; ++v) _mm512_storeu_ps(c + r * c_stride + v * lanes, sums[r][v]);
}

/// `count` rows, at most `rows`.
template <class Step, int rows, int vectors>
void multiply_up_to(int64_t count, int64_t depth, const uint16_t* a, int64_t a_stride,
                    const int32_t* panel, float* c, int64_t c_stride, bool accumulate) {
  if (count == rows)
    multiply_rows<Step, rows, vectors>(depth, a, a_stride, panel, c, c_stride, accumulate);
  else if constexpr (rows > 1)
    multiply_up_to<Step, rows - 1, vectors>(count, depth, a, a_stride, panel, c, c_stride,
                                            accumulate);
}

/// Part `index` of `count` of what is read next goes into the second-level cache.
void fetch_part(const int32_t* panel, int64_t numbers, int64_t index, int64_t count) {
  constexpr int64_t line = numbers_of_a_line / 2;  // pairs
  const int64_t lines = (numbers + line - 1) / line, end = lines * (index + 1) / count;
  for (int64_t i = lines * index / count; i < end; ++i)
    __builtin_prefetch(panel + i * line, 0, second_level);
}

template <class Step, int vectors>
void multiply(int64_t rows, int64_t depth, const uint16_t* a, int64_t a_stride,
              const int32_t* panel, float* c, int64_t c_stride, bool accumulate,
              const int32_t* following) {
  const int64_t blocks = (rows + rows_at_once - 1) / rows_at_once;
  for (int64_t block = 0; block < blocks;
       ++block, a += rows_at_once * a_stride, c += rows_at_once * c_stride) {
    if (following) fetch_part(following, depth / 2 * MatrixUnits::panel_columns, block, blocks);
    const int64_t left = rows - block * rows_at_once;
    multiply_up_to<Step, rows_at_once, vectors>(left < rows_at_once ? left : rows_at_once, depth, a,
                                                a_stride, panel, c, c_stride, accumulate);
  }
}

}  // namespace

extern const MatrixUnits units;
const MatrixUnits units = {"avx512bf16",          false,
                           multiply<AllPairs, 2>, multiply<AllPairs, 1>,
                           keep_two_of_four,      multiply<TwoOfFour, 2>,
                           pack_pairs_of_columns};

}  // namespace selfcal::kernels::bfloat16_pairs
