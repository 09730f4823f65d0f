// One Hessian's solver of tiles of rows in a device's memory: what GptqTiles is on the host.
#pragma once
#include "stages/solve/cuda/solve_kernels.hpp"
#include "stages/solve/row_solver.hpp"

namespace selfcal {

class DeviceTiles {
 public:
  /// Rows of a tile: products of matrices have one shape whatever the rows of a rank.
  static constexpr int64_t rows = 256;

  /// Settings that the kernels take; `upper` of the factor is in the device's memory.
  DeviceTiles(const MethodSettings& settings, at::ScalarType weight_dtype, const Factor& factor,
              const kernels::Device& device);

  const Groups& groups() const { return groups_; }

  /// tiles: float32 [tiles, columns, rows] in the device's memory, columns in the order of the
  /// matrix. The result is there too.
  TileSolution operator()(const at::Tensor& tiles) const;
  /// The same without data: pruned by magnitude, rounded to the nearest code.
  at::Tensor data_free(const at::Tensor& tiles) const;

 private:
  /// Positions that are solved one after the other, and what they need.
  struct Course {
    lanes::Grid grid;
    lanes::Pattern pattern;
    const Groups& groups;
    at::Tensor group_of_position;  // int32 [columns], in the device's memory
    at::Tensor upper;              // [columns, columns]; [block, block]: the same for all blocks
  };
  by_row::Columns columns_of(const Course& course) const;
  /// Scales before the solve.
  void find_scales(const Course& course, TileSolution& work) const;
  void find_scales_of_pruned(const Course& course, const at::Tensor& tiles,
                             TileSolution& work) const;
  /// All blocks of work.weight, in place.
  void run(const Course& course, TileSolution& work) const;
  TileSolution begin(const Course& course, const at::Tensor& tiles) const;

  const MethodSettings& settings_;
  lanes::Grid grid_, control_;
  Groups groups_, plain_;
  kernels::Device device_;
  at::Tensor upper_, unit_, permutation_, position_, live_;
  at::Tensor group_of_position_, group_of_column_;
  int64_t columns_;
};

}  // namespace selfcal
