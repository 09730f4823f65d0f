#include "stages/kernels/cpu/attention_products.hpp"

#include <ATen/ATen.h>

namespace selfcal::kernels {
namespace {

constexpr int64_t panel_columns = MatrixUnits::panel_columns;
constexpr int64_t weight_stride = key_block + 32;  // bfloat16 numbers: a cache line more

int64_t padded_to(int64_t count, int64_t step) { return ceil_divide(count, step) * step; }

/// `count` bfloat16 numbers in as many halves of floats.
uint16_t* take_halves(Parts& parts, int64_t count) {
  return reinterpret_cast<uint16_t*>(parts.take(ceil_divide(count, 2)));
}

}  // namespace

PanelAttention::PanelAttention(int64_t rows, int64_t head_dim, Parts& parts)
    : rows_(rows),
      head_dim_(head_dim),
      panel_(2 * vector_kernels().width),
      padded_(padded_to(head_dim, panel_)),
      queries_(parts.take(rows * padded_)),
      outputs_(parts.take(rows * padded_)),
      keys_(parts.take(panel_ * padded_)),
      values_(parts.take(key_block * padded_)) {}

void PanelAttention::set_query(int64_t row, const void* from, Number number, float scale) {
  vector_kernels().widen(from, number, head_dim_, scale, queries_ + row * padded_);
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

void PanelAttention::read(const Matrix& values, const float* scores, bool accumulate) {
  const auto& vectors = vector_kernels();
  vectors.split(values, 0, head_dim_, values_);
  for (int64_t j = 0; j < padded_; j += panel_)
    vectors.multiply_panel(rows_, values.count, scores, score_stride, values_ + j * values.count,
                           outputs_ + j, padded_, accumulate);
}

UnitAttention::UnitAttention(int64_t rows, int64_t head_dim, Parts& parts)
    : units_(*matrix_units()),
      rows_(rows),
      head_dim_(head_dim),
      padded_(padded_to(head_dim, panel_columns)),
      outputs_(parts.take(rows * padded_)),
      queries_(take_halves(parts, rows * padded_)),
      high_(take_halves(parts, rows * weight_stride)),
      low_(take_halves(parts, rows * weight_stride)),
      some_keys_(take_halves(parts, panel_columns * padded_)),
      keys_(reinterpret_cast<int32_t*>(parts.take(padded_ / 2 * panel_columns))),
      values_(reinterpret_cast<int32_t*>(parts.take(key_block / 2 * panel_columns))) {}

void UnitAttention::set_query(int64_t row, const void* from, Number /*bfloat16*/, float scale) {
  scale_ = scale;
  uint16_t* to = queries_ + row * padded_;
  std::copy_n(static_cast<const uint16_t*>(from), head_dim_, to);
  std::fill(to + head_dim_, to + padded_, uint16_t{0});
}

void UnitAttention::score(const Matrix& keys, float* scores) {
  for (int64_t j = 0; j < keys.count; j += panel_columns) {
    const int64_t count = std::min(panel_columns, keys.count - j);
    const auto* from = static_cast<const uint16_t*>(at_entry(keys, j * keys.columns));
    int64_t stride = keys.columns;
    if (head_dim_ != padded_) {
      for (int64_t i = 0; i < count; ++i) {
        std::copy_n(from + i * stride, head_dim_, some_keys_ + i * padded_);
        std::fill(some_keys_ + i * padded_ + head_dim_, some_keys_ + (i + 1) * padded_,
                  uint16_t{0});
      }
      from = some_keys_;
      stride = padded_;
    }
    vector_kernels().pack_whole_panel(reinterpret_cast<const int16_t*>(from), stride, count,
                                      padded_ / 2, keys_);
    units_.multiply(rows_, padded_, queries_, padded_, keys_, scores + j, score_stride, false,
                    nullptr);
  }
  for (int64_t row = 0; row < rows_; ++row) {
    float* const of_row = scores + row * score_stride;
    vector_kernels().widen(of_row, Number::float32, keys.count, scale_, of_row);
  }
}

void UnitAttention::read(const Matrix& values, const float* scores, bool accumulate) {
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
    units_.multiply(rows_, depth, high_, weight_stride, values_, outputs_ + j, padded_, accumulate,
                    nullptr);
    units_.multiply(rows_, depth, low_, weight_stride, values_, outputs_ + j, padded_, true,
                    nullptr);
  }
}

}  // namespace selfcal::kernels
