// GPTQ (Frantar et al., "GPTQ: accurate post-training quantization for generative pre-trained
// transformers", 2023): columns are rounded in turn, and what a rounding changes in the output is
// made good by the columns that follow.
#pragma once
#include <variant>

#include "stages/solve/panels.hpp"
#include "stages/solve/row_solver.hpp"
#include "stages/solve/short_panels.hpp"

namespace selfcal {

/// Tiles on their way: columns in the factor's order.
struct TilesInWork {
  at::Tensor weight, codes, kept;  // [tiles, columns, 32]
  at::Tensor scale, zero;          // [tiles, groups, 32]
  at::Tensor errors;               // [tiles, block, 32]

  int64_t tiles() const { return weight.size(0); }
  int64_t tile_size() const { return weight.stride(0); }
  float* weight_at(int64_t tile, int64_t position) const { return at(weight, tile, position); }
  float* codes_at(int64_t tile, int64_t position) const { return at(codes, tile, position); }
  float* kept_at(int64_t tile, int64_t position) const { return at(kept, tile, position); }
  float* scale_at(int64_t tile, int64_t group) const { return at(scale, tile, group); }
  float* zero_at(int64_t tile, int64_t group) const { return at(zero, tile, group); }
  float* errors_at(int64_t tile, int64_t row) const { return at(errors, tile, row); }

 private:
  /// Nothing where the method has no such tensor.
  static float* at(const at::Tensor& tensor, int64_t tile, int64_t row) {
    if (!tensor.defined()) return nullptr;
    return tensor.mutable_data_ptr<float>() + tile * tensor.stride(0) + row * lanes::rows;
  }
};

/// One Hessian's solver of tiles of rows. Holds the factor packed for the vector code; const and
/// shared by all threads.
class GptqTiles {
 public:
  GptqTiles(const MethodSettings& settings, at::ScalarType weight_dtype, const Factor& factor,
            const lanes::Kernels& kernels, const kernels::Context& context);

  const Groups& groups() const { return groups_; }

  /// tiles: float32 [tiles, columns, 32], columns in the order of the matrix.
  TileSolution operator()(const at::Tensor& tiles) const;

  // The same block by block, for sparsity whose mask of a block depends on other rows: between
  // begin() and finish(), kept_of_block() is filled before each solve_block().
  TilesInWork begin(const at::Tensor& tiles) const;
  int64_t blocks() const { return int64_t(blocks_.size()); }
  int64_t columns_of(int64_t block) const { return blocks_[block].last - blocks_[block].first; }
  /// What pruning an entry of the block would cost: [columns_of(block)][32] of one tile.
  void score_block(const TilesInWork& work, int64_t block, int64_t tile, float* scores) const;
  float* kept_of_block(const TilesInWork& work, int64_t block, int64_t tile) const {
    return work.kept_at(tile, blocks_[block].first);
  }
  void solve_block(TilesInWork& work, int64_t block) const;
  TileSolution finish(const TilesInWork& work) const;

 private:
  /// Columns whose errors reach the later columns of their block, then those beyond it, as one
  /// product.
  struct Step {
    int64_t first, last;
  };
  struct Block {
    int64_t first, last;
    int64_t steps_before;  // of other blocks
    std::vector<Step> steps;
  };

  std::vector<Block> cut_into_blocks() const;
  /// A rectangle a step: what its errors take off the rest of the block.
  std::vector<Rectangle> what_steps_reach() const;
  /// A rectangle a block: what its errors take off the columns beyond it.
  std::vector<Rectangle> what_blocks_reach() const;
  /// In whole numbers for a bfloat16 model, as its linear layers and statistics are.
  using AnyPanels = std::variant<Panels, ShortPanels>;
  AnyPanels panels_beyond_blocks(at::ScalarType weight_dtype,
                                 const kernels::Context& context) const;
  void find_scales(TilesInWork& work, int64_t first, int64_t last) const;
  void find_scales_of_pruned(TilesInWork& work, const at::Tensor& tiles) const;
  void solve_block(TilesInWork& work, int64_t block, const lanes::Grid& grid) const;
  void round_step(TilesInWork& work, const lanes::Grid& grid, const Step& step, int64_t row,
                  int64_t tile) const;

  const MethodSettings& settings_;
  lanes::Grid grid_;
  Groups groups_;
  const lanes::Kernels& kernels_;
  at::Tensor upper_, permutation_, dead_;
  bool has_dead_;
  std::vector<Block> blocks_;
  Panels within_blocks_;
  AnyPanels beyond_blocks_;
};

}  // namespace selfcal
