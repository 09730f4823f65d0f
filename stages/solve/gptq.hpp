// GPTQ (Frantar et al., "GPTQ: accurate post-training quantization for generative pre-trained
// transformers", 2023): columns are rounded in turn, and what a rounding changes in the output is
// made good by the columns that follow.
#pragma once
#include "stages/solve/panels.hpp"
#include "stages/solve/row_solver.hpp"

namespace selfcal {

/// One Hessian's solver of tiles of rows. Holds the factor packed for the vector code; const and
/// shared by all threads.
class GptqTiles {
 public:
  GptqTiles(const MethodSettings& settings, at::ScalarType weight_dtype, const Factor& factor,
            const lanes::Kernels& kernels, const kernels::Context& context);

  const Groups& groups() const { return groups_; }

  /// tiles: float32 [tiles, columns, 32], columns in the order of the matrix.
  TileSolution operator()(const at::Tensor& tiles) const;

 private:
  /// Columns whose errors reach the later columns of their block, then those beyond it, as one
  /// product.
  struct Step {
    int64_t first, last;
    int64_t within_block;  // rectangle of panels_: what the step's errors take off the rest of the
                           // block; -1: none
  };
  struct Block {
    int64_t first, last;
    int64_t first_step, last_step;
    int64_t beyond;  // rectangle of panels_: what the block's errors take off the columns beyond
                     // it; -1: none
  };
  struct Work;

  std::vector<Rectangle> cut_into_blocks();
  void find_scales(Work& work, int64_t first, int64_t last) const;
  void solve_block(Work& work, const Block& block) const;

  const MethodSettings& settings_;
  lanes::Grid grid_;
  Groups groups_;
  const lanes::Kernels& kernels_;
  at::Tensor upper_, permutation_, dead_;
  bool has_dead_;
  std::vector<Block> blocks_;
  std::vector<Step> steps_;
  Panels panels_;
};

}  // namespace selfcal
