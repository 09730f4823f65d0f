#include "stages/kernels/cpu/amx/tiles.hpp"
#include "stages/kernels/cpu/pair_panels.hpp"

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

}  // namespace

extern const MatrixUnits units;
const MatrixUnits units = {
    "amx", true, multiply, multiply, nullptr, nullptr, pack_pairs_of_columns};

}  // namespace selfcal::kernels::amx
