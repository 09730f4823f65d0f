// Operands as the matrix units read them: depths padded by zeros to whole steps.
#pragma once
#include "stages/kernels/cpu/matrix.hpp"
#include "stages/kernels/cpu/matrix_units.hpp"

namespace selfcal::kernels {

/// Copies `depth` numbers of each row, and zeros after them up to padded_depth(depth). Strides
/// count numbers.
inline void copy_padded(int64_t rows, int64_t depth, const uint16_t* from, int64_t stride,
                        uint16_t* to, int64_t to_stride) {
  for (int64_t i = 0; i < rows; ++i, from += stride, to += to_stride) {
    std::copy_n(from, depth, to);
    std::fill(to + depth, to + padded_depth(depth), uint16_t{0});
  }
}

/// At most MatrixUnits::panel_columns rows of `depth` numbers as a panel.
inline void pack_panel(int64_t rows, int64_t depth, const uint16_t* from, int64_t stride,
                       int32_t* panel) {
  const int64_t padded = padded_depth(depth);
  if (padded != depth) {
    static thread_local Scratch scratch;
    auto* copy = reinterpret_cast<uint16_t*>(scratch.floats(rows * padded / 2));
    copy_padded(rows, depth, from, stride, copy, padded);
    from = copy;
    stride = padded;
  }
  vector_kernels().pack_whole_panel(reinterpret_cast<const int16_t*>(from), stride, rows,
                                    padded / 2, panel);
}

}  // namespace selfcal::kernels
