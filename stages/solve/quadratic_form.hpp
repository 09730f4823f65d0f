// x H x^T of many rows: what the errors of a solve are measured in.
#pragma once
#include <optional>

#include "stages/solve/short_panels.hpp"

namespace selfcal {

class QuadraticForm {
 public:
  /// hessian: symmetric float32 [columns, columns]; only its upper triangle of blocks is read. Or
  /// its diagonal [columns], where the rest is not to count.
  QuadraticForm(const at::Tensor& hessian, const lanes::Kernels& kernels,
                const kernels::Context& context);

  /// x H x^T of each row: tiles float32 [tiles, columns, 32] -> float64 [tiles, 32]. Products are
  /// of whole numbers by blocks of 128 columns, the forms summed in float64. A row's value does not
  /// depend on the others.
  at::Tensor operator()(const at::Tensor& tiles) const;

 private:
  at::Tensor by_diagonal(const at::Tensor& tiles) const;

  int64_t columns_;
  const lanes::Kernels* kernels_;
  at::Tensor diagonal_;                // [columns, 1]
  std::optional<ShortPanels> panels_;  // else
};

}  // namespace selfcal
