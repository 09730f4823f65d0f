// Products of packed panels with tiles. Compiled with contraction: multiply and add fuse where the
// CPU can.
#include "stages/lanes/vector.hpp"

namespace selfcal::lanes::SELFCAL_INSTRUCTION_SET {
namespace {

constexpr int vectors = 2;  // vectors of rows in one pass

/// `count` columns of a panel, for the rows of two vectors.
template <int count, class Number>
void subtract_panel(const Number* panels, int64_t depth, const Number* other, Number* tile) {
  using Lanes = decltype(load(other));
  constexpr int64_t lanes = sizeof(Lanes) / sizeof(Number);
  Lanes sum[count][vectors] = {};
  for (int64_t k = 0; k < depth; ++k) {
    Lanes factor[vectors];
    for (int v = 0; v < vectors; ++v) factor[v] = load(other + k * rows + v * lanes);
    for (int j = 0; j < count; ++j) {
      const Lanes entry = panels[k * panel + j] - Lanes{};
      for (int v = 0; v < vectors; ++v) sum[j][v] += entry * factor[v];
    }
  }
#pragma GCC unroll 12
  for (int j = 0; j < count; ++j) {
#pragma GCC unroll 2
    for (int v = 0; v < vectors; ++v) {
      Number* at = tile + j * rows + v * lanes;
      store(at, load(at) - sum[j][v]);
    }
  }
}

template <int count, class Number>
void subtract_rows(const Number* panels, int64_t depth, const Number* other, Number* tile) {
  constexpr int64_t pass = vectors * width * int64_t{sizeof(float)} / int64_t{sizeof(Number)};
  static_assert(rows % pass == 0);
  for (int64_t row = 0; row < rows; row += pass)
    subtract_panel<count>(panels, depth, other + row, tile + row);
}

/// The last panel, which is not full.
template <int count, class Number>
void subtract_rest(const Number* panels, int64_t depth, int64_t columns, const Number* other,
                   Number* tile) {
  if constexpr (count > 0) {
    if (columns == count) return subtract_rows<count>(panels, depth, other, tile);
    subtract_rest<count - 1>(panels, depth, columns, other, tile);
  }
}

template <class Number>
void subtract_panels(const Number* panels, int64_t depth, int64_t columns, const Number* other,
                     Number* tile) {
  for (; columns >= panel; columns -= panel, panels += depth * panel, tile += panel * rows)
    subtract_rows<panel>(panels, depth, other, tile);
  subtract_rest<panel - 1>(panels, depth, columns, other, tile);
}

}  // namespace

void pack_panels(const float* matrix, int64_t stride, int64_t depth, int64_t columns,
                 float* panels) {
  constexpr int64_t at_once = 16;  // panels that are written side by side while rows are read on
  const int64_t full = columns / panel, rest = columns % panel;
  for (int64_t first = 0; first < full; first += at_once) {
    const int64_t last = first + at_once < full ? first + at_once : full;
    for (int64_t k = 0; k < depth; ++k) {
      for (int64_t p = first; p < last; ++p) {
        const float* from = matrix + k * stride + p * panel;
        float* into = panels + (p * depth + k) * panel;
        for (int j = 0; j < panel; ++j) into[j] = from[j];
      }
    }
  }
  if (rest == 0) return;
  for (int64_t k = 0; k < depth; ++k) {
    float* into = panels + (full * depth + k) * panel;
    for (int j = 0; j < panel; ++j) into[j] = j < rest ? matrix[k * stride + full * panel + j] : 0;
  }
}

void subtract_products(const float* panels, int64_t depth, int64_t columns, const float* other,
                       float* tile) {
  subtract_panels(panels, depth, columns, other, tile);
}

void subtract_products_double(const double* panels, int64_t depth, int64_t columns,
                              const double* other, double* tile) {
  subtract_panels(panels, depth, columns, other, tile);
}

void add_dot_products(const float* a, const float* b, int64_t columns, double* sums) {
  for (int64_t j = 0; j < columns; ++j) {
    for (int64_t row = 0; row < rows; ++row)
      sums[row] += double(a[j * rows + row]) * double(b[j * rows + row]);
  }
}

}  // namespace selfcal::lanes::SELFCAL_INSTRUCTION_SET
