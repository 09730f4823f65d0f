#include "stages/kernels/cpu/tiled_linear.hpp"

#include <ATen/ATen.h>

#include "stages/kernels/cpu/gemm.hpp"
#include "stages/kernels/cpu/matrix.hpp"
#include "stages/kernels/cpu/result_tiles.hpp"
#include "stages/kernels/cpu/unit_linear.hpp"
#include "stages/kernels/cpu/whole_linear.hpp"

namespace selfcal::kernels {
namespace {

constexpr int64_t most_rows = 264;
constexpr int64_t most_columns = 768;
constexpr int64_t longest_run =
    256;  // inputs: a panel of 16 columns then fills half of a first-level cache
constexpr int64_t packed_weights = 1 << 23;  // entries that are packed at once
constexpr int64_t library_columns = 256;
constexpr int64_t cache_line = 16;  // float32 entries

/// Columns of the result by our own inner product: their weights become panels once, rows of x are
/// widened for each tile and run of inputs.
class PanelProduct {
 public:
  explicit PanelProduct(const Operands& operands)
      : operands_(operands),
        inputs_(operands.x.columns),
        panel_columns_(2 * vector_kernels().width),
        panel_size_(ceil_divide(inputs_, panel_columns_) * panel_columns_ * panel_columns_),
        run_(part_of(inputs_, longest_run, vector_kernels().width)) {}

  void compute(const Context& context) {
    const int64_t columns = operands_.weight.count;
    const int64_t together =
        std::max<int64_t>(1, packed_weights / inputs_ / most_columns) * most_columns;
    panels_ = at::empty({ceil_divide(std::min(columns, together), panel_columns_) * panel_size_},
                        at::kFloat);
    for (first_ = 0; first_ < columns; first_ += together) {
      const int64_t end = std::min(first_ + together, columns);
      pack(context, end);
      for_result(context, operands_, first_, end, most_rows, most_columns,
                 [&](const Tile& tile) { compute_tile(tile); });
    }
  }

 private:
  float* panel(int64_t column) const {
    return panels_.mutable_data_ptr<float>() + (column - first_) / panel_columns_ * panel_size_;
  }

  void pack(const Context& context, int64_t end) const {
    const Matrix& weight = operands_.weight;
    for_tiles(context, ceil_divide(end - first_, panel_columns_), [&](int64_t index) {
      const int64_t column = first_ + index * panel_columns_;
      const Matrix some{at_entry(weight, column * inputs_), weight.number,
                        std::min(panel_columns_, end - column), inputs_};
      vector_kernels().transpose(some, panel_columns_, 0, inputs_, panel(column));
    });
  }

  void compute_tile(const Tile& tile) const {
    const auto& vectors = vector_kernels();
    const Matrix& x = operands_.x;
    constexpr int64_t sum_stride =
        most_columns + cache_line;  // so that rows begin on different cache lines
    const int64_t stride = run_ + cache_line;
    static thread_local Scratch scratch;
    float* const sums = scratch.floats(most_rows * (sum_stride + longest_run + 2 * cache_line));
    float* const rows = sums + most_rows * sum_stride;
    for (int64_t k = 0; k < inputs_; k += run_) {
      const int64_t depth = std::min(run_, inputs_ - k);
      for (int64_t i = 0; i < tile.rows; ++i)
        vectors.widen(at_entry(x, (tile.row + i) * inputs_ + k), x.number, depth, 1,
                      rows + i * stride);
      for (int64_t j = 0; j < tile.columns; j += panel_columns_)
        vectors.multiply_panel(tile.rows, depth, rows, stride,
                               panel(tile.column + j) + k * panel_columns_, sums + j, sum_stride,
                               k > 0);
    }
    write_tile(operands_, tile, sums, sum_stride);
  }

  const Operands operands_;
  const int64_t inputs_, panel_columns_, panel_size_, run_;
  at::Tensor panels_;
  int64_t first_ = 0;  // column whose panel is the first
};

/// The same with one product of the library a tile.
void compute_by_library(const Context& context, const Operands& operands) {
  const int64_t inputs = operands.x.columns;
  for_result(context, operands, 0, operands.weight.count, most_rows, library_columns,
             [&](const Tile& tile) {
               const auto rows_of = [&](const Matrix& matrix, int64_t row) {
                 return Rows<const float>{static_cast<const float*>(at_entry(matrix, row * inputs)),
                                          inputs};
               };
               static thread_local Scratch scratch;
               float* const sums = scratch.floats(most_rows * library_columns);
               multiply_transposed(tile.rows, tile.columns, inputs, rows_of(operands.x, tile.row),
                                   rows_of(operands.weight, tile.column),
                                   Rows<float>{sums, library_columns});
               write_tile(operands, tile, sums, library_columns);
             });
}

}  // namespace

Products best_products(int64_t inputs, at::ScalarType operands, at::ScalarType result) {
  if (operands == at::kFloat) return library_is_tuned() ? Products::library : Products::panels;
  if (matrix_units()) return Products::units;
  return result == at::kBFloat16 && inputs <= 4096 ? Products::whole : Products::panels;
}

at::Tensor linear_tiled(const Context& context, const at::Tensor& x, const at::Tensor& weight,
                        const at::Tensor& bias, std::optional<at::ScalarType> result,
                        Products products) {
  const at::Tensor x_aligned = aligned(x), weight_aligned = aligned(weight);
  const int64_t n = x.size(0), columns = weight.size(0);
  at::Tensor y = at::empty({n, columns}, x.options().dtype(result.value_or(x.scalar_type())));
  if (y.numel() == 0) return y;
  require(x.size(1) > 0, "linear: no inputs");
  const Operands operands{matrix_of(x_aligned), matrix_of(weight_aligned), matrix_of(bias),
                          y.mutable_data_ptr(), number_of(y)};
  if (products == Products::panels) {
    PanelProduct(operands).compute(context);
  } else if (products == Products::whole) {
    multiply_whole_rows(context, operands);
  } else if (products == Products::units) {
    require(matrix_units() && operands.x.number == Number::bfloat16,
            "linear: no matrix units for {}", at::toString(x.scalar_type()));
    multiply_by_units(context, *matrix_units(), operands);
  } else {
    require(operands.x.number == Number::float32, "linear: the library multiplies float32 only");
    compute_by_library(context, operands);
  }
  return y;
}

}  // namespace selfcal::kernels
