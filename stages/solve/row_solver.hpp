// What all methods share: rows are cut into tiles, dealt to the threads, solved,
// measured, packed.
#pragma once
#include <functional>
#include <span>

#include "stages/solve/quantiser.hpp"
#include "stages/solve/tiles.hpp"

namespace selfcal {

/// Tiles of rows on their way through a method, columns in the order of the matrix.
struct TileSolution {
  at::Tensor weight;  // float32 [tiles, columns, 32]: pruned, rounded to the grid
  at::Tensor codes;  // float32 [tiles, columns, 32]; with scale and zero, where weights are rounded
  at::Tensor scale;  // float32 [tiles, groups, 32]
  at::Tensor zero;   // float32 [tiles, groups, 32]
  at::Tensor kept;   // float32 [tiles, columns, 32], where weights are pruned: 0 for those
};

/// Fails where tensors of a problem, or the pattern and the columns, do not fit together.
void check_problem(const at::Tensor& weight, const at::Tensor& hessian,
                   const MethodSettings& settings);
/// Room for the results of `rows` rows, in the host's memory.
SolvedRows empty_rows(int64_t rows, int64_t columns, const MethodSettings& settings,
                      const Groups& groups, at::ScalarType weight_dtype);
/// ExitCode::data where a scale, in any memory, or a row's form is not finite.
void check_scales(const at::Tensor& scale, at::ScalarType scale_dtype);
void check_forms(std::span<const double> forms);
/// The factor's damping and dead columns become part of the result.
void note_factor(SolvedRows& solved, const Factor& factor);

/// Rounds every weight to the nearest code, whatever the Hessian: the data-free control.
TileSolution round_to_nearest(const at::Tensor& tiles, const lanes::Grid& grid,
                              const Groups& groups, const lanes::Kernels& kernels);

/// Tiles float32 [tiles, columns, 32] of rows from `first` on -> solution. Called for several tiles
/// at once, from any thread.
using SolveTiles = std::function<TileSolution(const at::Tensor& tiles, int64_t first)>;

struct RowSolver {
  const MethodSettings& settings;
  const lanes::Kernels& kernels;
  kernels::Context context;

  /// Rows that are solved by one task; `first` above is a multiple of it.
  int64_t rows_of_a_task(int64_t rows) const;

  /// As Method::controls documents.
  RowControls controls(const at::Tensor& weight, const at::Tensor& hessian,
                       at::ScalarType weight_dtype) const;

  /// Solves all rows of weight and measures them with the Hessian, as Method::solve documents.
  /// `groups`: of `solve`.
  SolvedRows operator()(const at::Tensor& weight, const at::Tensor& hessian,
                        at::ScalarType weight_dtype, const Groups& groups,
                        const SolveTiles& solve) const;
};

}  // namespace selfcal
