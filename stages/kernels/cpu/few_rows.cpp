#include "stages/kernels/cpu/few_rows.hpp"

#include <ATen/ATen.h>

#include "stages/kernels/cpu/matrix.hpp"
#include "stages/kernels/cpu/tiles.hpp"
#include "stages/kernels/cpu/unit_linear.hpp"

namespace selfcal::kernels {

/// Input columns that one thread transposes.
static constexpr int64_t transpose_tile = 1024;

static bool suits_units(const Matrix& x, const Matrix& weight) {
  return matrix_units() && x.number == Number::bfloat16 && weight.number == Number::bfloat16 &&
         x.count <= MatrixUnits::panel_columns && x.columns % MatrixUnits::step == 0;
}

at::Tensor linear_few_rows(const Context& context, const at::Tensor& x, const at::Tensor& weight,
                           const at::Tensor& bias, std::optional<at::ScalarType> result_dtype) {
  require(x.dim() == 2 && weight.dim() == 2 && x.size(1) == weight.size(1),
          "linear_few_rows: {} columns do not fit a weight of {} columns", x.size(-1),
          weight.size(-1));
  const int64_t n = x.size(0), columns = x.size(1);
  const Matrix x_rows = matrix_of(x), weight_rows = matrix_of(weight), bias_row = matrix_of(bias);
  auto result = at::empty({n, weight.size(0)}, result_dtype.value_or(x.scalar_type()));
  void* const data = result.mutable_data_ptr();
  const Number number = number_of(result);
  if (suits_units(x_rows, weight_rows)) {
    multiply_few_by_units(context, *matrix_units(), {x_rows, weight_rows, bias_row, data, number});
    return result;
  }

  const auto& vectors = vector_kernels();
  const int64_t lanes = ceil_divide(n, vectors.width) * vectors.width;
  auto transposed = at::empty({columns + vectors.width, lanes}, at::kFloat);
  auto* const x_columns = transposed.mutable_data_ptr<float>();
  for_ranges(context, columns, transpose_tile, [&](int64_t first, int64_t count) {
    vectors.transpose(x_rows, lanes, first, count, x_columns);
  });

  const int64_t step = context.threads ? context.threads->size() : 1;  // threads take tiles in turn
  for_tiles(context, ceil_divide(weight.size(0), weight_tile), [&](int64_t tile) {
    vectors.few_rows_tile(x_columns, n, lanes, weight_rows, bias_row, tile, tile + step, data,
                          number);
  });
  return result;
}

}  // namespace selfcal::kernels
