#include "stages/kernels/cpu/unit_linear.hpp"

#include <ATen/ATen.h>

#include <vector>

#include "stages/kernels/cpu/unit_panels.hpp"

namespace selfcal::kernels {
namespace {

constexpr int64_t longest_run = 384;         // a panel of so many inputs fits a first-level cache
constexpr int64_t longest_chunk = 1536;      // inputs of a tile between two visits of its sums
constexpr int64_t packed_weights = 1 << 23;  // entries that are packed at once
constexpr int64_t cache_line = 32, page = 2048;  // bfloat16 numbers
constexpr int64_t panel_columns = MatrixUnits::panel_columns;

/// Of a tile, so that in a second-level cache there are its panels while all rows of x pass by; or
/// its sums, where inputs come in chunks.
struct TileShape {
  int64_t rows, columns;

  static TileShape for_inputs(int64_t inputs) {
    if (inputs > longest_chunk) return {256, 768};
    return {128, std::min<int64_t>((1 << 19) / inputs, 768)};
  }
};

const uint16_t* numbers_of(const Matrix& matrix, int64_t row) {
  return static_cast<const uint16_t*>(matrix.data) + row * matrix.columns;
}

/// Rows as the units read them: a whole number of steps each, and not so far apart that all would
/// meet in one set of a cache.
class UnitRows {
 public:
  explicit UnitRows(const Matrix& matrix) : matrix_(matrix), stride_(matrix.columns) {
    copied_ = padded_depth(matrix.columns) != matrix.columns || matrix.columns % page == 0;
    if (copied_) stride_ = padded_depth(std::min(longest_chunk, matrix.columns)) + cache_line;
  }

  int64_t stride() const { return stride_; }

  /// Columns [first, first + count) of rows [row, row + rows), from column `first` on.
  const uint16_t* read(int64_t row, int64_t rows, int64_t first, int64_t count) const {
    const uint16_t* from = numbers_of(matrix_, row) + first;
    if (!copied_) return from;
    static thread_local Scratch scratch;
    auto* to = reinterpret_cast<uint16_t*>(scratch.floats(rows * stride_ / 2));
    copy_padded(rows, count, from, matrix_.columns, to, stride_);
    return to;
  }

 private:
  const Matrix matrix_;
  int64_t stride_;
  bool copied_;
};

/// Rows of a matrix as panels, side by side: [pairs][panel_columns] each. With `keep_two_of_four`,
/// which may be null, those that have as many zeros leave them out.
class Panels {
 public:
  Panels(int64_t most, int64_t columns, decltype(MatrixUnits::keep_two_of_four) keep_two_of_four)
      : depth_(padded_depth(columns)),
        numbers_(
            at::empty({ceil_divide(most, panel_columns), depth_ / 2 * panel_columns}, at::kInt)),
        first_(numbers_.mutable_data_ptr<int32_t>()),
        keep_two_of_four_(keep_two_of_four),
        two_of_four_(keep_two_of_four == nullptr ? 0 : static_cast<size_t>(numbers_.size(0))) {}

  /// That of rows from `index` on, a multiple of panel_columns, from its `depth`-th input on.
  const int32_t* from(int64_t index, int64_t depth) const {
    return first_ + index * depth_ / 2 + depth / 2 * panel_columns;
  }

  /// Whether that of rows from `index` on holds two of each four inputs.
  bool two_of_four(int64_t index) const {
    return keep_two_of_four_ && two_of_four_[static_cast<size_t>(index / panel_columns)];
  }

  /// Makes rows [first, first + count) of the matrix ours.
  void fill(const Context& context, const Matrix& matrix, int64_t first, int64_t count) {
    for_ranges(context, count, panel_columns, [&](int64_t row, int64_t some) {
      int32_t* const panel = first_ + row * depth_ / 2;
      pack_panel(some, matrix.columns, numbers_of(matrix, first + row), matrix.columns, panel);
      if (keep_two_of_four_)
        two_of_four_[static_cast<size_t>(row / panel_columns)] = keep_two_of_four_(depth_, panel);
    });
  }

 private:
  const int64_t depth_;
  const at::Tensor numbers_;
  int32_t* const first_;
  decltype(MatrixUnits::keep_two_of_four) keep_two_of_four_;
  std::vector<char> two_of_four_;  // a panel each; not bits, which threads would share
};

class UnitProduct {
 public:
  UnitProduct(const MatrixUnits& units, const Operands& operands)
      : units_(units),
        operands_(operands),
        inputs_(operands.x.columns),
        chunk_(part_of(inputs_, longest_chunk, MatrixUnits::step)),
        run_(part_of(chunk_, longest_run, MatrixUnits::step)),
        shape_(TileShape::for_inputs(inputs_)),
        together_(std::max<int64_t>(1, packed_weights / inputs_ / shape_.columns) * shape_.columns),
        x_(operands.x),
        weight_(std::min(operands.weight.count, together_), inputs_, units.keep_two_of_four) {}

  void compute(const Context& context) {
    const int64_t columns = operands_.weight.count;
    for (first_ = 0; first_ < columns; first_ += together_) {
      const int64_t end = std::min(first_ + together_, columns);
      weight_.fill(context, operands_.weight, first_, end - first_);
      const int64_t width = part_of(end - first_, shape_.columns, panel_columns);
      const int64_t rows = operands_.x.count, down = ceil_divide(rows, shape_.rows);
      for_tiles(context, ceil_divide(end - first_, width) * down, [&](int64_t index) {
        const int64_t row = index % down * shape_.rows, column = first_ + index / down * width;
        compute_tile(
            {row, std::min(shape_.rows, rows - row), column, std::min(width, end - column)});
      });
    }
  }

 private:
  void compute_tile(const Tile& tile) const {
    const bool in_chunks = chunk_ < inputs_;
    const int64_t stride = in_chunks ? shape_.columns + cache_line / 2 : panel_columns;
    static thread_local Scratch scratch;
    float* const sums = scratch.floats(shape_.rows * stride);
    for (int64_t first = 0; first < inputs_; first += chunk_) {
      const int64_t last = std::min(first + chunk_, inputs_);
      const uint16_t* rows = x_.read(tile.row, tile.rows, first, last - first);
      for (int64_t j = 0; j < tile.columns; j += panel_columns) {
        float* const to = in_chunks ? sums + j : sums;
        for (int64_t k = first; k < last; k += run_)
          multiply(tile, rows + k - first, j, k, std::min(run_, last - k), to, stride);
        if (last == inputs_)
          write_tile(
              operands_,
              {tile.row, tile.rows, tile.column + j, std::min(panel_columns, tile.columns - j)}, to,
              stride);
      }
    }
  }

  void multiply(const Tile& tile, const uint16_t* rows, int64_t j, int64_t k, int64_t depth,
                float* to, int64_t stride) const {
    const int64_t column = tile.column - first_ + j;
    const auto multiply =
        weight_.two_of_four(column) ? units_.multiply_two_of_four : units_.multiply;
    multiply(tile.rows, padded_depth(depth), rows, x_.stride(), weight_.from(column, k), to, stride,
             k > 0, following(tile, j, k));
  }

  /// The panel after that of column j of the tile from input k on.
  const int32_t* following(const Tile& tile, int64_t j, int64_t k) const {
    // Vectors read what has come in one chunk from a cache that is near enough.
    if (!units_.has_tiles && chunk_ >= inputs_) return nullptr;
    const int64_t column = tile.column - first_ + j, chunk = k / chunk_ * chunk_, next = k + run_;
    if (next < std::min(chunk + chunk_, inputs_)) return weight_.from(column, next);
    if (j + panel_columns < tile.columns) return weight_.from(column + panel_columns, chunk);
    return nullptr;
  }

  const MatrixUnits& units_;
  const Operands operands_;
  const int64_t inputs_, chunk_, run_;
  const TileShape shape_;
  const int64_t together_;  // columns of the result
  const UnitRows x_;
  Panels weight_;
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
  Panels x(rows, inputs, nullptr);
  x.fill({}, operands.x, 0, rows);
  const auto multiply = rows <= panel_columns / 2 ? units.multiply_half : units.multiply;
  for_ranges(context, operands.weight.count, weight_rows, [&](int64_t first, int64_t count) {
    alignas(64) float sums[weight_rows * panel_columns], by_row[panel_columns * weight_rows];
    multiply(count, inputs, numbers_of(operands.weight, first), inputs, x.from(0, 0), sums,
             panel_columns, false, nullptr);
    vector_kernels().transpose({sums, Number::float32, count, panel_columns}, weight_rows, 0, rows,
                               by_row);
    write_tile(operands, {0, rows, first, count}, by_row, weight_rows);
  });
}

}  // namespace selfcal::kernels
