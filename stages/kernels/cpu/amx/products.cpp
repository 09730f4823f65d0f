// Intel's Advanced Matrix Extensions: eight tile registers of 16 rows of 64 bytes. Four of them are
// the sums of 32 rows and 32 columns, so that each operand's tile is multiplied twice.
#include <immintrin.h>

#include <cstring>

#include "stages/kernels/cpu/matrix_units.hpp"

namespace selfcal::kernels::amx {
namespace {

constexpr int64_t tile_rows = 16;

/// Tiles 0 to 3: sums, 4 and 5: rows of a, 6 and 7: columns of a panel.
struct alignas(64) Configuration {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};

  /// For `upper` rows of a above `lower` ones.
  Configuration(int64_t upper, int64_t lower) {
    const int64_t of_tile[8] = {upper, upper, lower, lower, upper, lower, tile_rows, tile_rows};
    for (int tile = 0; tile < 8; ++tile) {
      row_bytes[tile] = of_tile[tile] > 0 ? 64 : 0;
      rows[tile] = static_cast<uint8_t>(of_tile[tile]);
    }
  }
};

/// Rows of a, both operands' strides in bytes.
struct Block {
  const char *a, *panel;
  char* c;
  int64_t a_stride, c_stride, steps;
  bool accumulate;
};

constexpr int64_t panel_stride = MatrixUnits::panel_columns * sizeof(int32_t),
                  step_bytes = MatrixUnits::step * sizeof(uint16_t),
                  panel_step = tile_rows * panel_stride;

/// (Tile loads do not tell the compiler that they read memory.)
void settle_memory() { asm volatile("" ::: "memory"); }

void multiply_two_tiles(const Block& block) {
  const char *upper = block.a, *lower = block.a + tile_rows * block.a_stride, *panel = block.panel;
  char *const c = block.c, *const lower_c = block.c + tile_rows * block.c_stride;
  if (block.accumulate) {
    _tile_loadd(0, c, block.c_stride);
    _tile_loadd(1, c + 64, block.c_stride);
    _tile_loadd(2, lower_c, block.c_stride);
    _tile_loadd(3, lower_c + 64, block.c_stride);
  } else {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
  }
  for (int64_t k = 0; k < block.steps; ++k) {
    _tile_loadd(6, panel, panel_stride);
    _tile_loadd(7, panel + 64, panel_stride);
    _tile_loadd(4, upper, block.a_stride);
    _tile_loadd(5, lower, block.a_stride);
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
    upper += step_bytes;
    lower += step_bytes;
    panel += panel_step;
  }
  _tile_stored(0, c, block.c_stride);
  _tile_stored(1, c + 64, block.c_stride);
  _tile_stored(2, lower_c, block.c_stride);
  _tile_stored(3, lower_c + 64, block.c_stride);
}

void multiply_one_tile(const Block& block) {
  const char *a = block.a, *panel = block.panel;
  if (block.accumulate) {
    _tile_loadd(0, block.c, block.c_stride);
    _tile_loadd(1, block.c + 64, block.c_stride);
  } else {
    _tile_zero(0);
    _tile_zero(1);
  }
  for (int64_t k = 0; k < block.steps; ++k, a += step_bytes, panel += panel_step) {
    _tile_loadd(4, a, block.a_stride);
    _tile_loadd(6, panel, panel_stride);
    _tile_loadd(7, panel + 64, panel_stride);
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
  }
  _tile_stored(0, block.c, block.c_stride);
  _tile_stored(1, block.c + 64, block.c_stride);
}

void multiply(int64_t rows, int64_t depth, const uint16_t* a, int64_t a_stride,
              const int32_t* panel, float* c, int64_t c_stride, bool accumulate) {
  Block block{reinterpret_cast<const char*>(a),
              reinterpret_cast<const char*>(panel),
              reinterpret_cast<char*>(c),
              a_stride * static_cast<int64_t>(sizeof(uint16_t)),
              c_stride * static_cast<int64_t>(sizeof(float)),
              depth / MatrixUnits::step,
              accumulate};
  settle_memory();
  constexpr int64_t both = 2 * tile_rows;
  if (rows >= both) {
    const Configuration whole(tile_rows, tile_rows);
    _tile_loadconfig(&whole);
    for (; rows >= both; rows -= both) {
      multiply_two_tiles(block);
      block.a += both * block.a_stride;
      block.c += both * block.c_stride;
    }
  }
  if (rows > 0) {
    const int64_t upper = rows < tile_rows ? rows : tile_rows;
    const Configuration rest(upper, rows - upper);
    _tile_loadconfig(&rest);
    if (rows > upper)
      multiply_two_tiles(block);
    else
      multiply_one_tile(block);
  }
  _tile_release();
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
  for (uint16_t i = 0; i < 16; ++i) {
    first[2 * i] = i;
    first[2 * i + 1] = static_cast<uint16_t>(32 + i);
    second[2 * i] = static_cast<uint16_t>(16 + i);
    second[2 * i + 1] = static_cast<uint16_t>(48 + i);
  }
  const __m512i first_columns = _mm512_load_si512(first), others = _mm512_load_si512(second);
  constexpr int64_t rows_ahead = 16;
  for (int64_t row = 0; row < padded_depth(rows); row += 2, panel += MatrixUnits::panel_columns) {
    const uint16_t* from = x + row * stride;
    _mm_prefetch(from + rows_ahead * stride, _MM_HINT_T0);
    _mm_prefetch(from + (rows_ahead + 1) * stride, _MM_HINT_T0);
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
