// What all methods that round rows share: rows are cut into tiles, dealt to the threads, solved,
// measured, packed.
#pragma once
#include <functional>

#include "stages/solve/quantiser.hpp"
#include "stages/solve/tiles.hpp"

namespace selfcal {

/// Tiles of rows on their way through a method, columns in the order of the matrix.
struct TileSolution {
  at::Tensor weight;  // float32 [tiles, columns, 32]: rounded to the grid
  at::Tensor codes;   // float32 [tiles, columns, 32]
  at::Tensor scale;   // float32 [tiles, groups, 32]
  at::Tensor zero;    // float32 [tiles, groups, 32]
};

/// Rounds every weight to the nearest code, whatever the Hessian: the data-free control.
TileSolution round_to_nearest(const at::Tensor& tiles, const lanes::Grid& grid,
                              const Groups& groups, const lanes::Kernels& kernels);

/// tiles float32 [tiles, columns, 32] -> solution. Called for several tiles at once, from any
/// thread.
using SolveTiles = std::function<TileSolution(const at::Tensor& tiles)>;

struct RowSolver {
  const MethodSettings& settings;
  const lanes::Kernels& kernels;
  kernels::Context context;

  /// Solves all rows of weight and measures them with the Hessian, as Method::solve documents.
  /// `groups`: of `solve`.
  SolvedRows operator()(const at::Tensor& weight, const at::Tensor& hessian,
                        at::ScalarType weight_dtype, const Groups& groups,
                        const SolveTiles& solve) const;
};

}  // namespace selfcal
