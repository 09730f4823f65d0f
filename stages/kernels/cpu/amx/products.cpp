#include "stages/kernels/cpu/amx/tiles.hpp"
#include "stages/kernels/cpu/matrix_units.hpp"

namespace selfcal::kernels::amx {
namespace {

using namespace selfcal::amx;

constexpr int64_t panel_stride = MatrixUnits::panel_columns * sizeof(int32_t),
                  step_bytes = MatrixUnits::step * sizeof(uint16_t),
                  panel_step = tile_rows * panel_stride;

/// Rows of a, and their stride in bytes.
struct Rows {
  const char* first;
  int64_t stride;
};

template <bool lower_too>
void add_products(const Rows& a, const char* panel, int64_t steps, Ahead& ahead) {
  const char *upper = a.first, *lower = a.first + tile_rows * a.stride;
  for (int64_t k = 0; k < steps; ++k) {
    _tile_loadd(6, panel, panel_stride);
    _tile_loadd(7, panel + 64, panel_stride);
    _tile_loadd(4, upper, a.stride);
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    if constexpr (lower_too) {
      _tile_loadd(5, lower, a.stride);
      _tile_dpbf16ps(2, 5, 6);
      _tile_dpbf16ps(3, 5, 7);
    }
    ahead.fetch();
    upper += step_bytes;
    lower += step_bytes;
    panel += panel_step;
  }
}

void multiply(int64_t rows, int64_t depth, const uint16_t* a, int64_t a_stride,
              const int32_t* panel, float* c, int64_t c_stride, bool accumulate,
              const int32_t* following) {
  const int64_t steps = depth / MatrixUnits::step;
  Ahead ahead(following, steps * panel_step, steps * ((rows + most_rows - 1) / most_rows));
  for_sums(rows, c, c_stride, [&](int64_t row, const Sums& sums) {
    const Rows from{reinterpret_cast<const char*>(a + row * a_stride),
                    a_stride * static_cast<int64_t>(sizeof(uint16_t))};
    if (accumulate)
      load_sums(sums);
    else
      clear_sums(sums);
    if (sums.lower_too)
      add_products<true>(from, reinterpret_cast<const char*>(panel), steps, ahead);
    else
      add_products<false>(from, reinterpret_cast<const char*>(panel), steps, ahead);
    store_sums(sums);
  });
}

/// The first `columns` of 32 numbers; zeros without a row.
__m512i read_row(const uint16_t* x, int64_t columns) {
  if (columns == MatrixUnits::panel_columns) return _mm512_loadu_si512(x);
  return _mm512_maskz_loadu_epi16(static_cast<__mmask32>((1ull << columns) - 1), x);
}

void pack_columns(const uint16_t* x, int64_t stride, int64_t rows, int64_t columns,
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
    const __m512i even = read_row(from, row < rows ? columns : 0),
                  odd = read_row(from + stride, row + 1 < rows ? columns : 0);
    _mm512_storeu_si512(panel, _mm512_permutex2var_epi16(even, first_columns, odd));
    _mm512_storeu_si512(panel + 16, _mm512_permutex2var_epi16(even, others, odd));
  }
}

}  // namespace

extern const MatrixUnits units;
const MatrixUnits units = {"amx", multiply, pack_columns};

}  // namespace selfcal::kernels::amx
