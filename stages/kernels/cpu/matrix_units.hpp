// What a processor has for products of bfloat16, units for whole tiles or vector instructions for
// pairs: plain pointers in, plain pointers out.
#pragma once
#include <cstdint>

namespace selfcal::kernels {

struct MatrixUnits {
  const char* name;  // part of the numeric kind
  /// Of tiles (AMX), faster at everything; else of vectors (AVX512-BF16), no faster at statistics
  /// and solves than whole numbers are.
  bool has_tiles;

  /// Numbers along the sum that are multiplied at once: what depths are padded to, by zeros.
  static constexpr int64_t step = 32;
  /// Columns of a panel: [depth / 2][panel_columns] of two numbers that follow one another along
  /// the sum, the first in the low half. VectorKernels::pack_whole_panel makes one of as many rows.
  static constexpr int64_t panel_columns = 32;

  /// c[rows][panel_columns] = a[rows][depth] panel, added to what c holds if `accumulate`. Strides
  /// count numbers. Products are exact and summed in float32 (subnormal numbers count as zero), in
  /// an order that does not depend on the number of rows or on whether the depth is cut by
  /// `accumulate`. Tiles: the two numbers of a pair apart over each `step`, then these two sums,
  /// then the steps in order; vectors: pair after pair. `following`: the panel that is multiplied
  /// next, null if there is none.
  void (*multiply)(int64_t rows, int64_t depth, const uint16_t* a, int64_t a_stride,
                   const int32_t* panel, float* c, int64_t c_stride, bool accumulate,
                   const int32_t* following);
  /// The same where only the first half of the columns counts; the others may be anything.
  void (*multiply_half)(int64_t rows, int64_t depth, const uint16_t* a, int64_t a_stride,
                        const int32_t* panel, float* c, int64_t c_stride, bool accumulate,
                        const int32_t* following);

  /// Where vectors can leave out half of the products: of a panel whose columns have two zeros in
  /// each four numbers along the sum makes one of the other two, in place and as large: for each
  /// four, [panel_columns] pairs, then [panel_columns] of where they stood. False, and nothing is
  /// changed, where the panel has others. Null with tiles, which multiply faster than they leave
  /// out.
  bool (*keep_two_of_four)(int64_t depth, int32_t* panel);
  /// As multiply(), of a panel of kept numbers: same bits where `a` is finite.
  void (*multiply_two_of_four)(int64_t rows, int64_t depth, const uint16_t* a, int64_t a_stride,
                               const int32_t* panel, float* c, int64_t c_stride, bool accumulate,
                               const int32_t* following);

  /// A panel of `columns` of x [rows, ...], at most panel_columns, whose sum runs along the rows;
  /// zeros past the last column and up to the next multiple of `step` rows.
  void (*pack_columns)(const uint16_t* x, int64_t stride, int64_t rows, int64_t columns,
                       int32_t* panel);
};

/// Those of this processor; null where it has none, or the system does not lend them.
const MatrixUnits* matrix_units();
/// All that this processor has, best first: number `rank`, null past the last (for tests).
const MatrixUnits* supported_units(int rank);

/// `depth` padded to whole steps.
constexpr int64_t padded_depth(int64_t depth) {
  return (depth + MatrixUnits::step - 1) / MatrixUnits::step * MatrixUnits::step;
}

}  // namespace selfcal::kernels
