// Compiled without contraction, like the kernels.
#include <vector>

#include "stages/solve/cuda/solve_kernels.hpp"

namespace selfcal {
namespace {

using namespace by_row;

/// The kernels' work in plain loops: what a thread does there is done for one row after the other.
class CpuTwin : public SolveKernels {
 public:
  void find_scales(const Columns& columns, const TileArrays& arrays) override {
    for (int64_t tile = 0; tile < arrays.tiles; ++tile)
      for (int64_t group = 0; group < arrays.groups; ++group)
        for (int64_t row = 0; row < arrays.rows; ++row)
          find_scale_of_group(columns, arrays, tile, row, group);
  }

  void solve_block(const Columns& columns, const TileArrays& arrays, const Block& block) override {
    std::vector<float> staged(static_cast<size_t>(2 * columns.block * lanes::rows));
    for (int64_t tile = 0; tile < arrays.tiles; ++tile)
      for (int64_t row = 0; row < arrays.rows; ++row)
        solve_row_of_tile(columns, arrays, tile, row, block, staged.data(),
                          staged.data() + columns.block * lanes::rows);
  }
};

}  // namespace

std::unique_ptr<SolveKernels> make_cpu_twin() { return std::make_unique<CpuTwin>(); }

}  // namespace selfcal
