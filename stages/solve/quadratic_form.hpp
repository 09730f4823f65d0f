// x H x^T of many rows: what the errors of a solve are measured in.
#pragma once
#include "stages/solve/panels.hpp"

namespace selfcal {

class QuadraticForm {
 public:
  /// hessian: symmetric float32 [columns, columns]; only its upper triangle of blocks is read.
  QuadraticForm(const at::Tensor& hessian, const lanes::Kernels& kernels,
                const kernels::Context& context);

  /// x H x^T of each row: tiles float32 [tiles, columns, 32] -> float64 [tiles, 32]. Products are
  /// summed in float32 by blocks of 128 columns, the forms in float64. A row's value does not
  /// depend on the others.
  at::Tensor operator()(const at::Tensor& tiles) const;

 private:
  int64_t columns_;
  const lanes::Kernels* kernels_;
  Panels panels_;
};

}  // namespace selfcal
