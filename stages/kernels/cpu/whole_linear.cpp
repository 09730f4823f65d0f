#include "stages/kernels/cpu/whole_linear.hpp"

#include <ATen/ATen.h>

namespace selfcal::kernels {
namespace {

// The rows of x of a tile stay in a second-level cache, and with them its sums.
constexpr int64_t highest = 132, widest = 192;
constexpr int64_t cache_line = 16;           // of 32-bit numbers
constexpr int64_t packed_weights = 1 << 23;  // entries that are packed at once

using Pack = void (*)(const int16_t* rows, int64_t stride, int64_t count, int64_t pairs,
                      int32_t* packed);

/// Rows of a matrix as whole numbers, `lanes` side by side, and their steps.
class WholeRows {
 public:
  WholeRows(int64_t most, int64_t columns, int64_t lanes, Pack pack)
      : lanes_(lanes),
        pairs_(whole_row(columns, vector_kernels().width) / 2),
        pack_(pack),
        numbers_(at::empty({ceil_divide(most, lanes) * lanes, pairs_}, at::kInt)),
        steps_(at::empty({ceil_divide(most, lanes) * lanes}, at::kFloat)),
        first_(numbers_.mutable_data_ptr<int32_t>()),
        first_step_(steps_.mutable_data_ptr<float>()) {}

  int64_t lanes() const { return lanes_; }
  int64_t pairs() const { return pairs_; }
  /// Those from row `index` on, a multiple of lanes(): [pairs][lanes].
  const int32_t* from(int64_t index) const { return first_ + index * pairs_; }
  const float* steps(int64_t index) const { return first_step_ + index; }

  /// Makes rows [first, first + count) of the matrix ours.
  void fill(const Context& context, const Matrix& matrix, int64_t first, int64_t count) const {
    for_ranges(context, count, lanes_, [&](int64_t row, int64_t some) {
      static thread_local Scratch scratch;
      auto* whole = reinterpret_cast<int16_t*>(scratch.floats(lanes_ * pairs_));
      for (int64_t i = 0; i < some; ++i)
        first_step_[row + i] =
            vector_kernels().to_whole(at_entry(matrix, (first + row + i) * matrix.columns),
                                      matrix.number, matrix.columns, whole + i * 2 * pairs_);
      pack_(whole, 2 * pairs_, some, pairs_, first_ + row * pairs_);
    });
  }

 private:
  const int64_t lanes_, pairs_;
  const Pack pack_;
  const at::Tensor numbers_, steps_;
  int32_t* const first_;
  float* const first_step_;
};

class WholeProduct {
 public:
  explicit WholeProduct(const Operands& operands)
      : operands_(operands),
        together_(std::max<int64_t>(1, packed_weights / operands.x.columns / widest) * widest),
        x_(operands.x.count, operands.x.columns, vector_kernels().whole_rows,
           vector_kernels().pack_whole_rows),
        weight_(std::min(operands.weight.count, together_), operands.x.columns,
                2 * vector_kernels().width, vector_kernels().pack_whole_panel) {}

  void compute(const Context& context) {
    x_.fill(context, operands_.x, 0, operands_.x.count);
    const int64_t columns = operands_.weight.count;
    for (first_ = 0; first_ < columns; first_ += together_) {
      const int64_t end = std::min(first_ + together_, columns);
      weight_.fill(context, operands_.weight, first_, end - first_);
      for_result(context, operands_, first_, end, highest, widest,
                 [&](const Tile& tile) { compute_tile(tile); });
    }
  }

 private:
  void compute_tile(const Tile& tile) const {
    const auto& vectors = vector_kernels();
    constexpr int64_t stride = widest + cache_line;
    static thread_local Scratch scratch;
    auto* sums = reinterpret_cast<int32_t*>(scratch.floats((highest + row_step) * stride));
    const int64_t column = tile.column - first_;
    for (int64_t j = 0; j < tile.columns; j += weight_.lanes())
      for (int64_t i = 0; i < tile.rows; i += x_.lanes())
        vectors.multiply_whole(std::min(x_.lanes(), tile.rows - i), x_.pairs(),
                               x_.from(tile.row + i), x_.lanes(), weight_.from(column + j),
                               sums + i * stride + j, stride, false);
    const Matrix& bias = operands_.bias;
    for (int64_t i = 0; i < tile.rows; ++i)
      vectors.narrow_whole(sums + i * stride, *x_.steps(tile.row + i), weight_.steps(column),
                           bias.data ? at_entry(bias, tile.column) : nullptr, bias.number,
                           tile.columns,
                           at_entry(operands_.y, operands_.y_number,
                                    (tile.row + i) * operands_.weight.count + tile.column),
                           operands_.y_number);
  }

  const Operands operands_;
  const int64_t together_;  // columns of the result
  const WholeRows x_, weight_;
  int64_t first_ = 0;  // column that weight_ begins with
};

}  // namespace

void multiply_whole_rows(const Context& context, const Operands& operands) {
  WholeProduct(operands).compute(context);
}

}  // namespace selfcal::kernels
