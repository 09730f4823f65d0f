// Pruning without compensation: the smallest weights go, by magnitude or by magnitude times the
// norm of their input (Sun et al., "A simple and effective pruning approach for large language
// models", 2023).
#pragma once
#include "stages/solve/row_solver.hpp"

namespace selfcal {

/// Weight and mask of tiles float32 [tiles, columns, 32]. norms: float32 [columns], undefined:
/// ones. The scores |weight| * norm of a row are compared with each other: the int(columns * share)
/// lowest go, or the `zeros` lowest of every run; of equal ones the first goes. A row's result does
/// not depend on the others.
TileSolution prune_by_magnitude(const at::Tensor& tiles, const at::Tensor& norms,
                                const Sparsity& sparsity, const lanes::Kernels& kernels);

}  // namespace selfcal
