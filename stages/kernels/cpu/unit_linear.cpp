#include "stages/kernels/cpu/unit_linear.hpp"

#include <ATen/ATen.h>

namespace selfcal::kernels {
namespace {

// Panels of a tile's columns stay in a second-level cache while all rows of x pass by, with the
// tile's rows and sums.
constexpr int64_t highest = 128, narrowest = 96, widest = 768, tile_weights = 1 << 19;
constexpr int64_t longest_run = 768;  // a panel of so many inputs fits a first-level cache
constexpr int64_t packed_weights = 1 << 23;  // entries that are packed at once
constexpr int64_t cache_line = 32, page = 2048;  // bfloat16 numbers
constexpr int64_t panel_columns = MatrixUnits::panel_columns;

const uint16_t* numbers_of(const Matrix& matrix, int64_t row) {
  return static_cast<const uint16_t*>(matrix.data) + row * matrix.columns;
}

/// Rows as the units read them: a whole number of steps each, and not so far apart that all would
/// meet in one set of a cache.
class UnitRows {
 public:
  explicit UnitRows(const Matrix& matrix) : matrix_(matrix), stride_(matrix.columns) {
    copied_ = padded_depth(matrix.columns) != matrix.columns || matrix.columns % page == 0;
    if (copied_) stride_ = padded_depth(std::min(longest_run, matrix.columns)) + cache_line;
  }

  int64_t stride() const { return stride_; }

  /// Columns [first, first + count) of rows [row, row + rows), from column `first` on.
  const uint16_t* read(int64_t row, int64_t rows, int64_t first, int64_t count) const {
    const uint16_t* from = numbers_of(matrix_, row) + first;
    if (!copied_) return from;
    static thread_local Scratch scratch;
    auto* to = reinterpret_cast<uint16_t*>(scratch.floats(rows * stride_ / 2));
    for (int64_t i = 0; i < rows; ++i) {
      std::copy_n(from + i * matrix_.columns, count, to + i * stride_);
      std::fill(to + i * stride_ + count, to + i * stride_ + padded_depth(count), uint16_t{0});
    }
    return to;
  }

 private:
  const Matrix matrix_;
  int64_t stride_;
  bool copied_;
};

/// Rows of a matrix as panels, side by side: [pairs][panel_columns] each.
class Panels {
 public:
  Panels(int64_t most, int64_t columns)
      : pairs_(padded_depth(columns) / 2),
        numbers_(at::empty({ceil_divide(most, panel_columns), pairs_ * panel_columns}, at::kInt)),
        first_(numbers_.mutable_data_ptr<int32_t>()) {}

  /// That of rows from `index` on, a multiple of panel_columns, from its `depth`-th input on.
  const int32_t* from(int64_t index, int64_t depth) const {
    return first_ + index * pairs_ + depth / 2 * panel_columns;
  }

  /// Makes rows [first, first + count) of the matrix ours.
  void fill(const Context& context, const Matrix& matrix, int64_t first, int64_t count) const {
    for_ranges(context, count, panel_columns, [&](int64_t row, int64_t some) {
      fill_panel(matrix, first + row, some, first_ + row * pairs_);
    });
  }

 private:
  void fill_panel(const Matrix& matrix, int64_t row, int64_t count, int32_t* panel) const {
    const uint16_t* rows = numbers_of(matrix, row);
    int64_t stride = matrix.columns;
    if (stride != 2 * pairs_) {
      static thread_local Scratch scratch;
      auto* padded = reinterpret_cast<uint16_t*>(scratch.floats(panel_columns * pairs_));
      for (int64_t i = 0; i < count; ++i) {
        std::copy_n(rows + i * stride, stride, padded + i * 2 * pairs_);
        std::fill(padded + i * 2 * pairs_ + stride, padded + (i + 1) * 2 * pairs_, uint16_t{0});
      }
      rows = padded;
      stride = 2 * pairs_;
    }
    vector_kernels().pack_whole_panel(reinterpret_cast<const int16_t*>(rows), stride, count, pairs_,
                                      panel);
  }

  const int64_t pairs_;
  const at::Tensor numbers_;
  int32_t* const first_;
};

/// Writes `count` sums as numbers of a row of the result, from `column` on.
void write_row(const Operands& operands, int64_t row, int64_t column, const float* sums,
               int64_t count) {
  const Matrix& bias = operands.bias;
  vector_kernels().narrow(
      sums, bias.data ? at_entry(bias, column) : nullptr, bias.number, count, 1,
      at_entry(operands.y, operands.y_number, row * operands.weight.count + column),
      operands.y_number);
}

class UnitProduct {
 public:
  UnitProduct(const MatrixUnits& units, const Operands& operands)
      : units_(units),
        operands_(operands),
        inputs_(operands.x.columns),
        run_(part_of(inputs_, longest_run, MatrixUnits::step)),
        together_(std::max<int64_t>(1, packed_weights / inputs_ / widest) * widest),
        x_(operands.x),
        weight_(std::min(operands.weight.count, together_), inputs_) {}

  void compute(const Context& context) {
    const int64_t columns = operands_.weight.count;
    for (first_ = 0; first_ < columns; first_ += together_) {
      const int64_t end = std::min(first_ + together_, columns);
      weight_.fill(context, operands_.weight, first_, end - first_);
      const int64_t width = part_of(
          end - first_, std::clamp(tile_weights / inputs_, narrowest, widest), panel_columns);
      const int64_t rows = operands_.x.count, down = ceil_divide(rows, highest);
      for_tiles(context, ceil_divide(end - first_, width) * down, [&](int64_t index) {
        const int64_t row = index % down * highest, column = first_ + index / down * width;
        compute_tile(
            {row, std::min(highest, rows - row), column, std::min(width, end - column)});
      });
    }
  }

 private:
  void compute_tile(const Tile& tile) const {
    constexpr int64_t sum_stride = widest + cache_line / 2;
    static thread_local Scratch scratch;
    float* const sums = scratch.floats((highest + row_step) * sum_stride);
    for (int64_t k = 0; k < inputs_; k += run_) {
      const int64_t depth = std::min(run_, inputs_ - k);
      const uint16_t* rows = x_.read(tile.row, tile.rows, k, depth);
      for (int64_t j = 0; j < tile.columns; j += panel_columns)
        units_.multiply(tile.rows, padded_depth(depth), rows, x_.stride(),
                        weight_.from(tile.column - first_ + j, k), sums + j, sum_stride, k > 0);
    }
    for (int64_t i = 0; i < tile.rows; ++i)
      write_row(operands_, tile.row + i, tile.column, sums + i * sum_stride, tile.columns);
  }

  const MatrixUnits& units_;
  const Operands operands_;
  const int64_t inputs_, run_, together_;  // the last: columns of the result
  const UnitRows x_;
  const Panels weight_;
  int64_t first_ = 0;  // column that weight_ begins with
};

}  // namespace

void multiply_by_units(const Context& context, const MatrixUnits& units, const Operands& operands) {
  UnitProduct(units, operands).compute(context);
}

void multiply_few_by_units(const Context& context, const MatrixUnits& units,
                           const Operands& operands) {
  constexpr int64_t weight_rows = 96;
  const int64_t inputs = operands.x.columns, rows = operands.x.count;
  const Panels x(rows, inputs);
  x.fill({}, operands.x, 0, rows);
  for_ranges(context, operands.weight.count, weight_rows, [&](int64_t first, int64_t count) {
    alignas(64) float sums[weight_rows * panel_columns], by_row[panel_columns * weight_rows];
    units.multiply(count, inputs, numbers_of(operands.weight, first), inputs, x.from(0, 0), sums,
                   panel_columns, false);
    vector_kernels().transpose({sums, Number::float32, count, panel_columns}, weight_rows, 0, rows,
                               by_row);
    for (int64_t i = 0; i < rows; ++i)
      write_row(operands, i, first, by_row + i * weight_rows, count);
  });
}

}  // namespace selfcal::kernels
