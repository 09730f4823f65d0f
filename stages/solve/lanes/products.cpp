// Products of packed panels with tiles. Compiled with contraction: multiply and add fuse where the
// CPU can.
#include "stages/solve/lanes/vector.hpp"

namespace selfcal::lanes::SELFCAL_INSTRUCTION_SET {
namespace {

constexpr int vectors = 2;  // vectors of rows in one pass
static_assert(rows % (vectors * width) == 0);

/// `count` columns of a panel, for the rows of two vectors.
template <int count>
void subtract_panel(const float* panels, int64_t depth, const float* other, float* tile) {
  Vector sum[count][vectors] = {};
  for (int64_t k = 0; k < depth; ++k) {
    Vector factor[vectors];
    for (int v = 0; v < vectors; ++v) factor[v] = load(other + k * rows + v * width);
    for (int j = 0; j < count; ++j) {
      const Vector entry = all(panels[k * panel + j]);
      for (int v = 0; v < vectors; ++v) sum[j][v] += entry * factor[v];
    }
  }
  for (int j = 0; j < count; ++j) {
    for (int v = 0; v < vectors; ++v) {
      float* at = tile + j * rows + v * width;
      store(at, load(at) - sum[j][v]);
    }
  }
}

template <int count>
void subtract_rows(const float* panels, int64_t depth, const float* other, float* tile) {
  for (int64_t row = 0; row < rows; row += vectors * width)
    subtract_panel<count>(panels, depth, other + row, tile + row);
}

/// The last panel, which is not full.
template <int count>
void subtract_rest(const float* panels, int64_t depth, int64_t columns, const float* other,
                   float* tile) {
  if constexpr (count > 0) {
    if (columns == count) return subtract_rows<count>(panels, depth, other, tile);
    subtract_rest<count - 1>(panels, depth, columns, other, tile);
  }
}

}  // namespace

void subtract_products(const float* panels, int64_t depth, int64_t columns, const float* other,
                       float* tile) {
  for (; columns >= panel; columns -= panel, panels += depth * panel, tile += panel * rows) {
    subtract_rows<panel>(panels, depth, other, tile);
  }
  subtract_rest<panel - 1>(panels, depth, columns, other, tile);
}

void add_dot_products(const float* a, const float* b, int64_t columns, double* sums) {
  for (int64_t j = 0; j < columns; ++j) {
    for (int64_t row = 0; row < rows; ++row)
      sums[row] += double(a[j * rows + row]) * double(b[j * rows + row]);
  }
}

}  // namespace selfcal::lanes::SELFCAL_INSTRUCTION_SET
