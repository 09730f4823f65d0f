// Compiled without contraction, like the kernels.
#include <algorithm>
#include <vector>

#include "stages/solve/cuda/tile_rows.hpp"
#include "stages/solve/cuda/tile_solver.hpp"

namespace selfcal {
namespace {

using namespace by_row;

/// The kernels' work in plain loops: what a thread does there is done for one row after the other.
class CpuTwin : public TileSolver {
 public:
  void solve(const Columns& columns, const TileArrays& arrays) override {
    std::vector<float> errors(static_cast<size_t>(arrays.tiles * columns.block * lanes::rows));
    TileArrays memory = arrays;
    memory.errors = errors.data();
    for (int64_t first = 0; first < columns.count; first += columns.block) {
      const int64_t last = std::min(first + columns.block, columns.count);
      for (int64_t tile = 0; tile < arrays.tiles; ++tile) {
        for (int64_t row = 0; row < lanes::rows; ++row) {
          solve_block_of_row(columns, memory, tile, row, first, last);
          subtract_beyond(columns, memory, tile, row, first, last);
        }
      }
    }
  }

 private:
  void solve_block_of_row(const Columns& columns, const TileArrays& memory, int64_t tile,
                          int64_t row, int64_t first, int64_t last) {
    const float* upper = columns.upper + first * (columns.count + 1);
    staged_.resize(static_cast<size_t>(2 * columns.block * lanes::rows));
    solve_row_of_tile(columns, memory, tile, row, {first, last, upper, columns.count},
                      staged_.data(), staged_.data() + columns.block * lanes::rows);
  }

  static void subtract_beyond(const Columns& columns, const TileArrays& memory, int64_t tile,
                              int64_t row, int64_t first, int64_t last) {
    float* weights = row_at(memory.weight, tile, columns.count, row);
    const float* errors = row_at(memory.errors, tile, columns.block, row);
    const auto error = [&](int64_t k) { return errors[k * lanes::rows]; };
    for (int64_t j = last; j < columns.count; ++j) {
      const float* upper = columns.upper + first * columns.count + j;
      weights[j * lanes::rows] -= product(upper, columns.count, last - first, error);
    }
  }

  std::vector<float> staged_;  // what the kernel has in shared memory
};

}  // namespace

std::unique_ptr<TileSolver> make_cpu_twin() { return std::make_unique<CpuTwin>(); }

}  // namespace selfcal
