// Float32 products of the columns of a leaf, tile by tile: the unit of work of second-order
// statistics.
#pragma once
#include <ATen/core/Tensor.h>

#include <vector>

#include "stages/kernels/ops.hpp"
#include "stages/lanes/lanes.hpp"

namespace selfcal {

/// Which code multiplies; part of the numeric kind. bfloat16: the processor's matrix units where it
/// has any, else whole numbers (whole_products.hpp). float32: the vector code of stages/lanes.
enum class ProductCode { lanes, whole, units };
ProductCode product_code(at::ScalarType dtype);

/// Strips, 32 columns each, that cover the columns.
int64_t strips_of(int64_t columns);

/// A run of strips against a run of columns.
struct ProductTile {
  at::Tensor data;
  int64_t strip_stride, column_stride;
  float sign;  // that the data is to be multiplied by

  /// Entries of strip `strip` of the run with column `column` of the run: 32 floats; those past the
  /// last column are 0.
  const float* at(int64_t strip, int64_t column) const {
    return data.const_data_ptr<float>() + strip * strip_stride + column * column_stride;
  }
};

/// A leaf, prepared: x [tokens, columns], contiguous float32 or bfloat16. Products of bfloat16 are
/// exact before they are summed in float32.
class LeafProducts {
 public:
  static constexpr int64_t tile_columns = 384;  // a task's columns start at multiples of this

  LeafProducts(const at::Tensor& x, ProductCode code, const kernels::Context& context);

  /// Strips that one task should take at a time.
  int64_t strips_of_a_task() const { return code_ == ProductCode::units ? 8 : 2; }

  /// X_strips^T X_columns for strips [first_strip, first_strip + strips) and columns [column,
  /// column + columns), column a multiple of tile_columns. Entries below the strips' diagonal may
  /// be anything. On the calling thread alone.
  ProductTile operator()(int64_t first_strip, int64_t strips, int64_t column,
                         int64_t columns) const;

 private:
  void pack(const at::Tensor& x, const kernels::Context& context);
  void pack_for_units(const kernels::Context& context);
  ProductTile by_lanes(int64_t first_strip, int64_t strips, int64_t column, int64_t columns) const;
  ProductTile by_units(int64_t first_strip, int64_t strips, int64_t column, int64_t columns) const;

  at::Tensor x_;
  ProductCode code_;
  const lanes::Kernels& kernels_;
  // By runs of tokens: all columns in panels, all columns in strips [strip][token][32]. For units:
  // panels of pairs of tokens, and their transpose [column][token].
  at::Tensor panels_, strips_;
};

}  // namespace selfcal
