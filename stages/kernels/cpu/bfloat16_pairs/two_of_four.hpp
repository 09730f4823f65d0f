// Panels of pairs that leave out two zeros of each four numbers along the sum (2:4 sparsity: Mishra
// et al., arXiv 2104.08378).
#pragma once
#include <immintrin.h>

#include "stages/kernels/cpu/matrix_units.hpp"

namespace selfcal::kernels::bfloat16_pairs {
namespace {

constexpr int lanes = 16;  // sums of a vector, or pairs
constexpr int numbers_of_a_group = 4;
constexpr int group_size = numbers_of_a_group / 2 * MatrixUnits::panel_columns;  // in a panel

__m512bh pairs_at(const int32_t* from) { return (__m512bh)_mm512_loadu_si512(from); }

/// Four numbers along the sum of each of 16 columns, apart.
struct Group {
  __m512i number[numbers_of_a_group];
  __mmask16 counts[numbers_of_a_group];  // where they are not zero

  explicit Group(const int32_t* panel) {
    const __m512i without_sign = _mm512_set1_epi32(0x7fff);
    for (int i = 0; i < numbers_of_a_group; ++i) {
      const __m512i pairs = _mm512_loadu_si512(panel + i / 2 * MatrixUnits::panel_columns);
      number[i] = i % 2 == 0 ? _mm512_and_si512(pairs, _mm512_set1_epi32(0xffff))
                             : _mm512_srli_epi32(pairs, 16);
      counts[i] = _mm512_test_epi32_mask(number[i], without_sign);
    }
  }

  bool has_more_than_two() const {
    const int both = counts[0] & counts[1], either = counts[0] | counts[1],
              others = counts[2] & counts[3], other = counts[2] | counts[3];
    return ((both & other) | (others & either)) != 0;
  }
};

/// Of a group, in each column, the number that a pair holds in one half: the first in `order` that
/// is not zero, else the last.
struct Kept {
  __m512i number, place;

  Kept(const Group& group, const int (&order)[3])
      : number(group.number[order[2]]), place(_mm512_set1_epi32(order[2])) {
    for (int i = 1; i >= 0; --i) {
      const __mmask16 counts = group.counts[order[i]];
      number = _mm512_mask_mov_epi32(number, counts, group.number[order[i]]);
      place = _mm512_mask_mov_epi32(place, counts, _mm512_set1_epi32(order[i]));
    }
  }

  /// Of the number's two bytes.
  __m512i bytes() const {
    return _mm512_add_epi32(_mm512_mullo_epi32(place, _mm512_set1_epi32(0x0202)),
                            _mm512_set1_epi32(0x0100));
  }
};

__m512i pairs_of(__m512i low, __m512i high) {
  return _mm512_or_si512(low, _mm512_slli_epi32(high, 16));
}

/// The high half of a pair is added first. So that sums keep their order, the two are taken from
/// both ends of the order in which pairs of all numbers would be added.
void keep_two_of(int32_t* panel) {
  const Group group(panel);
  const Kept high(group, {1, 0, 3}), low(group, {2, 3, 0});
  const __mmask16 twice = _mm512_cmpeq_epi32_mask(high.place, low.place);
  const __m512i low_number = _mm512_mask_mov_epi32(low.number, twice, _mm512_setzero_si512());
  _mm512_storeu_si512(panel, pairs_of(low_number, high.number));
  _mm512_storeu_si512(panel + MatrixUnits::panel_columns, pairs_of(low.bytes(), high.bytes()));
}

bool keep_two_of_four(int64_t depth, int32_t* panel) {
  const int32_t* end = panel + depth / numbers_of_a_group * group_size;
  for (const int32_t* group = panel; group < end; group += group_size)
    for (int v = 0; v < 2; ++v)
      if (Group(group + v * lanes).has_more_than_two()) return false;
  for (int32_t* group = panel; group < end; group += group_size)
    for (int v = 0; v < 2; ++v) keep_two_of(group + v * lanes);
  return true;
}

}  // namespace
}  // namespace selfcal::kernels::bfloat16_pairs
