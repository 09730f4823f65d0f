#include "stages/kernels/cpu/whole_linear.hpp"

#include <ATen/ATen.h>

namespace selfcal::kernels {
namespace {

// The rows of x of a tile stay in a second-level cache, and with them its sums.
constexpr int64_t highest = 132, widest = 192;
constexpr int64_t cache_line = 16;           // of 32-bit numbers
constexpr int64_t packed_weights = 1 << 23;  // entries that are packed at once
constexpr int64_t rows_at_once = 32;         // of x, made whole by one task

/// Rows of a matrix as whole numbers, and their steps.
class WholeRows {
 public:
  /// (Strides that are large powers of two would put all rows into the same cache lines.)
  WholeRows(int64_t count, int64_t columns)
      : stride_(whole_row(columns, vector_kernels().width) + 2 * cache_line),
        numbers_(at::empty({count, stride_}, at::kShort)),
        steps_(at::empty({count}, at::kFloat)),
        first_(numbers_.mutable_data_ptr<int16_t>()),
        first_step_(steps_.mutable_data_ptr<float>()) {}

  int64_t stride() const { return stride_; }
  int16_t* row(int64_t index) const { return first_ + index * stride_; }
  float step(int64_t index) const { return first_step_[index]; }

  /// Rows [first, first + count) of the matrix.
  void fill(const Matrix& from, int64_t first, int64_t count) const {
    for (int64_t i = first; i < first + count; ++i)
      first_step_[i] = vector_kernels().to_whole(at_entry(from, i * from.columns), from.number,
                                                 from.columns, row(i));
  }

 private:
  const int64_t stride_;
  const at::Tensor numbers_, steps_;
  int16_t* const first_;
  float* const first_step_;
};

class WholeProduct {
 public:
  explicit WholeProduct(const Operands& operands)
      : operands_(operands),
        pairs_(whole_row(operands.x.columns, vector_kernels().width) / 2),
        panel_columns_(2 * vector_kernels().width),
        x_(operands.x.count, operands.x.columns) {}

  void compute(const Context& context) {
    const Matrix& x = operands_.x;
    for_ranges(context, x.count, rows_at_once,
               [&](int64_t first, int64_t count) { x_.fill(x, first, count); });
    const int64_t columns = operands_.weight.count;
    const int64_t together = std::max<int64_t>(1, packed_weights / (2 * pairs_) / widest) * widest;
    const int64_t most = ceil_divide(std::min(columns, together), column_step) * column_step;
    panels_ = at::empty({most * pairs_}, at::kInt);
    steps_ = at::empty({most}, at::kFloat);
    for (first_ = 0; first_ < columns; first_ += together) {
      const int64_t end = std::min(first_ + together, columns);
      for_ranges(context, end - first_, panel_columns_,
                 [&](int64_t column, int64_t count) { pack(first_ + column, count); });
      for_result(context, operands_, first_, end, highest, widest,
                 [&](const Tile& tile) { compute_tile(tile); });
    }
  }

 private:
  int32_t* panel(int64_t column) const {
    return panels_.mutable_data_ptr<int32_t>() + (column - first_) * pairs_;
  }
  float* steps(int64_t column) const { return steps_.mutable_data_ptr<float>() + column - first_; }

  void pack(int64_t column, int64_t count) const {
    static thread_local Scratch scratch;
    const int64_t stride = x_.stride();
    auto* rows = reinterpret_cast<int16_t*>(scratch.floats(panel_columns_ * stride / 2));
    const Matrix& weight = operands_.weight;
    for (int64_t i = 0; i < count; ++i)
      steps(column)[i] =
          vector_kernels().to_whole(at_entry(weight, (column + i) * weight.columns), weight.number,
                                    weight.columns, rows + i * stride);
    vector_kernels().pack_whole(rows, stride, count, pairs_, panel(column));
  }

  void compute_tile(const Tile& tile) const {
    const auto& vectors = vector_kernels();
    constexpr int64_t stride = widest + cache_line;
    static thread_local Scratch scratch;
    auto* sums = reinterpret_cast<int32_t*>(scratch.floats((highest + row_step) * stride));
    for (int64_t j = 0; j < tile.columns; j += panel_columns_)
      vectors.multiply_whole(tile.rows, pairs_, x_.row(tile.row), x_.stride(),
                             panel(tile.column + j), sums + j, stride, false);
    const Matrix& bias = operands_.bias;
    for (int64_t i = 0; i < tile.rows; ++i)
      vectors.narrow_whole(sums + i * stride, x_.step(tile.row + i), steps(tile.column),
                           bias.data ? at_entry(bias, tile.column) : nullptr, bias.number,
                           tile.columns,
                           at_entry(operands_.y, operands_.y_number,
                                    (tile.row + i) * operands_.weight.count + tile.column),
                           operands_.y_number);
  }

  const Operands operands_;
  const int64_t pairs_, panel_columns_;
  const WholeRows x_;
  at::Tensor panels_, steps_;
  int64_t first_ = 0;  // column whose panel is the first
};

}  // namespace

void multiply_whole_rows(const Context& context, const Operands& operands) {
  WholeProduct(operands).compute(context);
}

}  // namespace selfcal::kernels
