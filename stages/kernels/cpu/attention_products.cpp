#include "stages/kernels/cpu/attention_products.hpp"

#include <ATen/ATen.h>

#include "stages/kernels/cpu/unit_panels.hpp"

namespace selfcal::kernels {
namespace {

constexpr int64_t panel_columns = MatrixUnits::panel_columns;
constexpr int64_t weight_stride = key_block + 32;   // bfloat16 numbers: a cache line more
static_assert(panel_columns == MatrixUnits::step);  // so that outputs are padded as queries are

/// `count` bfloat16 numbers in as many halves of floats.
uint16_t* take_halves(Parts& parts, int64_t count) {
  return reinterpret_cast<uint16_t*>(parts.take(ceil_divide(count, 2)));
}

int64_t float_panel() { return 2 * vector_kernels().width; }

}  // namespace

int64_t PanelAttention::padded(int64_t head_dim) {
  return ceil_divide(head_dim, float_panel()) * float_panel();
}

PanelAttention::PanelAttention(int64_t rows, int64_t head_dim, float scale, Parts& parts)
    : rows_(rows),
      head_dim_(head_dim),
      panel_(float_panel()),
      padded_(padded(head_dim)),
      scale_(scale),
      queries_(parts.take(rows * padded_)),
      keys_(parts.take(panel_ * padded_)),
      values_(parts.take(key_block * padded_)) {}

void PanelAttention::set_query(int64_t row, const void* from, Number number) {
  vector_kernels().widen(from, number, head_dim_, scale_, queries_ + row * padded_);
}

void PanelAttention::score(const Matrix& keys, float* scores) {
  const auto& vectors = vector_kernels();
  for (int64_t j = 0; j < keys.count; j += panel_) {
    const Matrix some{at_entry(keys, j * keys.columns), keys.number,
                      std::min(panel_, keys.count - j), keys.columns};
    vectors.transpose(some, panel_, 0, head_dim_, keys_);
    vectors.multiply_panel(rows_, head_dim_, queries_, padded_, keys_, scores + j, score_stride,
                           false);
  }
}

void PanelAttention::read(const Matrix& values, const float* scores, float* outputs,
                          bool accumulate) {
  const auto& vectors = vector_kernels();
  vectors.split(values, 0, head_dim_, values_);
  for (int64_t j = 0; j < padded_; j += panel_)
    vectors.multiply_panel(rows_, values.count, scores, score_stride, values_ + j * values.count,
                           outputs + j, padded_, accumulate);
}

UnitAttention::UnitAttention(int64_t rows, int64_t head_dim, float scale, Parts& parts)
    : units_(*matrix_units()),
      rows_(rows),
      head_dim_(head_dim),
      padded_(padded(head_dim)),
      scale_(scale),
      queries_(take_halves(parts, rows * padded_)),
      high_(take_halves(parts, rows * weight_stride)),
      low_(take_halves(parts, rows * weight_stride)),
      keys_(reinterpret_cast<int32_t*>(parts.take(padded_ / 2 * panel_columns))),
      values_(reinterpret_cast<int32_t*>(parts.take(key_block / 2 * panel_columns))) {}

void UnitAttention::set_query(int64_t row, const void* from, Number /*bfloat16*/) {
  copy_padded(1, head_dim_, static_cast<const uint16_t*>(from), head_dim_, queries_ + row * padded_,
              padded_);
}

void UnitAttention::score(const Matrix& keys, float* scores) {
  for (int64_t j = 0; j < keys.count; j += panel_columns) {
    pack_panel(std::min(panel_columns, keys.count - j), head_dim_,
               static_cast<const uint16_t*>(at_entry(keys, j * keys.columns)), keys.columns, keys_);
    units_.multiply(rows_, padded_, queries_, padded_, keys_, scores + j, score_stride, false,
                    nullptr);
  }
  for (int64_t row = 0; row < rows_; ++row) {
    float* const of_row = scores + row * score_stride;
    vector_kernels().widen(of_row, Number::float32, keys.count, scale_, of_row);
  }
}

void UnitAttention::read(const Matrix& values, const float* scores, float* outputs,
                         bool accumulate) {
  const int64_t depth = padded_depth(values.count);
  for (int64_t row = 0; row < rows_; ++row) {
    uint16_t *const high = high_ + row * weight_stride, *const low = low_ + row * weight_stride;
    vector_kernels().split_in_two(scores + row * score_stride, values.count, high, low);
    std::fill(high + values.count, high + depth, uint16_t{0});
    std::fill(low + values.count, low + depth, uint16_t{0});
  }
  for (int64_t j = 0; j < head_dim_; j += panel_columns) {
    units_.pack_columns(static_cast<const uint16_t*>(at_entry(values, j)), values.columns,
                        values.count, std::min(panel_columns, head_dim_ - j), values_);
    units_.multiply(rows_, depth, high_, weight_stride, values_, outputs + j, padded_, accumulate,
                    nullptr);
    units_.multiply(rows_, depth, low_, weight_stride, values_, outputs + j, padded_, true,
                    nullptr);
  }
}

}  // namespace selfcal::kernels
