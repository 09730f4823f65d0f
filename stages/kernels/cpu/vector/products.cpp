// The inner product of tiled matrix products: a few rows by one panel, with all sums in registers
// (Goto and van de Geijn, "Anatomy of high-performance matrix multiplication", 2008).
#include "stages/kernels/cpu/vector/kernels.hpp"
#include "stages/kernels/cpu/vector/runs_of_rows.hpp"
#include "stages/kernels/cpu/vector/vector.hpp"

namespace selfcal::kernels::SELFCAL_INSTRUCTIONS {
namespace {

template <int rows>
void multiply_rows(int64_t depth, const float* a, int64_t a_stride, const float* panel, float* c,
                   int64_t c_stride, bool accumulate) {
  Floats sums[rows][2] = {};
  for (int64_t k = 0; k < depth; ++k, panel += 2 * width) {
    const Floats left = read<Floats>(panel), right = read<Floats>(panel + width);
#pragma GCC unroll 16
    for (int r = 0; r < rows; ++r) {
      const Floats value = all(a[r * a_stride + k]);
      sums[r][0] += value * left;
      sums[r][1] += value * right;
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < rows; ++r) {
    float* to = c + r * c_stride;
    write(to, accumulate ? read<Floats>(to) + sums[r][0] : sums[r][0]);
    write(to + width, accumulate ? read<Floats>(to + width) + sums[r][1] : sums[r][1]);
  }
}

}  // namespace

void multiply_panel(int64_t rows, int64_t depth, const float* a, int64_t a_stride,
                    const float* panel, float* c, int64_t c_stride, bool accumulate) {
  for_runs_of_rows<most_rows>(rows, [&](auto count, int64_t row) {
    multiply_rows<count>(depth, a + row * a_stride, a_stride, panel, c + row * c_stride, c_stride,
                         accumulate);
  });
}

void split(const Matrix& x, int64_t first, int64_t count, float* panels) {
  with_type(x.data, x.number, [&](const auto* data) {
    for (int64_t column = 0; column < count; column += 2 * width)
      for (int64_t row = 0; row < x.count; ++row, panels += 2 * width) {
        const auto* from = data + row * x.columns + first + column;
        if (column + 2 * width <= count) {
          write(panels, read_widened(from));
          write(panels + width, read_widened(from + width));
        } else {
          for (int i = 0; i < 2 * width; ++i)
            panels[i] = column + i < count ? widen(from[i]) : 0.0f;
        }
      }
  });
}

}  // namespace selfcal::kernels::SELFCAL_INSTRUCTIONS
