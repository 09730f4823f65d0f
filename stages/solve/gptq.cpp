#include "stages/solve/gptq.hpp"

#include <ATen/ATen.h>

#include <algorithm>

#include "stages/solve/cuda/block_of_columns.hpp"

namespace selfcal {
GptqTiles::GptqTiles(const MethodSettings& settings, at::ScalarType weight_dtype,
                     const Factor& factor, const lanes::Kernels& kernels,
                     const kernels::Context& context)
    : settings_(settings),
      grid_(grid_of(settings, weight_dtype)),
      groups_(lay_out_groups(settings, factor.permutation)),
      kernels_(kernels),
      upper_(factor.upper),
      permutation_(factor.permutation),
      dead_(factor.dead),
      has_dead_(dead_.any().item<bool>()),
      blocks_(cut_into_blocks()),
      within_blocks_(upper_, what_steps_reach(), kernels, context),
      beyond_blocks_(panels_beyond_blocks(weight_dtype, context)) {}

std::vector<GptqTiles::Block> GptqTiles::cut_into_blocks() const {
  const int64_t columns = upper_.size(0),
                step_columns = by_row::columns_of_step(settings_.sparsity.pattern);
  // Scales that are found on the way are found between steps.
  const bool stop_at_groups =
      groups_.dynamic && settings_.group_parameters == GroupParameters::current;
  std::vector<Block> blocks;
  int64_t steps = 0;
  for (int64_t first = 0; first < columns; first += settings_.block_size) {
    Block block{first, std::min(first + settings_.block_size, columns), steps, {}};
    for (int64_t at = first; at < block.last; at = block.steps.back().last) {
      int64_t last = std::min(at + step_columns, block.last);
      if (stop_at_groups) last = std::min(last, (at / groups_.size + 1) * groups_.size);
      block.steps.push_back({at, last});
    }
    steps += int64_t(block.steps.size());
    blocks.push_back(std::move(block));
  }
  return blocks;
}

std::vector<Rectangle> GptqTiles::what_steps_reach() const {
  std::vector<Rectangle> rectangles;
  for (const Block& block : blocks_)
    for (const Step& step : block.steps)
      rectangles.push_back({step.first, step.last - step.first, step.last, block.last - step.last});
  return rectangles;
}

std::vector<Rectangle> GptqTiles::what_blocks_reach() const {
  std::vector<Rectangle> rectangles;
  for (const Block& block : blocks_)
    rectangles.push_back(
        {block.first, block.last - block.first, block.last, upper_.size(0) - block.last});
  return rectangles;
}

GptqTiles::AnyPanels GptqTiles::panels_beyond_blocks(at::ScalarType weight_dtype,
                                                     const kernels::Context& context) const {
  if (weight_dtype != at::kBFloat16) return Panels(upper_, what_blocks_reach(), kernels_, context);
  // (Errors are changes of weights divided by the pivot of their row.)
  return ShortPanels(upper_, upper_.diagonal(), what_blocks_reach(), kernels_, context);
}

/// Scales of the groups of positions that begin in [first, last), from the weights as they are now.
void GptqTiles::find_scales(TilesInWork& work, int64_t first, int64_t last) const {
  const int64_t columns = upper_.size(0), size = groups_.size;
  for (int64_t group = (first + size - 1) / size; group * size < last; ++group) {
    const int64_t begin = group * size, count = std::min(size, columns - begin);
    for (int64_t i = 0; i < work.tiles(); ++i) {
      kernels_.find_scale(grid_, work.weight_at(i, begin), count, work.scale_at(i, group),
                          work.zero_at(i, group));
    }
  }
}

/// `row`: of the step's first column in the block's errors.
void GptqTiles::round_step(TilesInWork& work, const lanes::Grid& grid, const Step& step,
                           int64_t row, int64_t tile) const {
  const int64_t columns = upper_.size(0), count = step.last - step.first;
  const float* upper = upper_.const_data_ptr<float>() + step.first * (columns + 1);
  const int32_t* group = groups_.of_position.data() + step.first;
  float *weight = work.weight_at(tile, step.first), *scale = work.scale_at(tile, 0),
        *zero = work.zero_at(tile, 0), *codes = work.codes_at(tile, step.first),
        *errors = work.errors_at(tile, row);
  if (settings_.sparsity.any())
    kernels_.prune_with_feedback(grid, settings_.sparsity.pattern, weight, count, upper, columns,
                                 group, scale, zero, work.kept_at(tile, step.first), codes, errors);
  else
    kernels_.round_with_feedback(grid, weight, count, upper, columns, group, scale, zero, codes,
                                 errors);
}

void GptqTiles::score_block(const TilesInWork& work, int64_t block, int64_t tile,
                            float* scores) const {
  const int64_t first = blocks_[block].first, columns = upper_.size(0);
  kernels_.score_columns(work.weight_at(tile, first), columns_of(block),
                         upper_.const_data_ptr<float>() + first * (columns + 1), columns, scores);
}

void GptqTiles::solve_block(TilesInWork& work, int64_t index) const {
  solve_block(work, index, grid_);
}

void GptqTiles::solve_block(TilesInWork& work, int64_t index, const lanes::Grid& grid) const {
  const Block& block = blocks_[index];
  const bool on_the_way = groups_.dynamic && grid.quantises,
             published = settings_.group_parameters == GroupParameters::published;
  if (on_the_way && published) find_scales(work, block.first, block.last);
  int64_t rectangle = block.steps_before;
  for (const Step& step : block.steps) {
    if (on_the_way && !published) find_scales(work, step.first, step.first + 1);
    const int64_t row = step.first - block.first;
    for (int64_t tile = 0; tile < work.tiles(); ++tile) round_step(work, grid, step, row, tile);
    within_blocks_.subtract(rectangle++, work.tiles(), work.errors_at(0, row),
                            work.errors.stride(0), work.weight_at(0, step.last), work.tile_size());
  }
  if (block.last == upper_.size(0)) return;
  const auto subtract = [&](const auto& panels) {
    panels.subtract(index, work.tiles(), work.errors_at(0, 0), work.errors.stride(0),
                    work.weight_at(0, block.last), work.tile_size());
  };
  std::visit(subtract, beyond_blocks_);
}

/// See prunes_before_scales().
void GptqTiles::find_scales_of_pruned(TilesInWork& work, const at::Tensor& tiles) const {
  lanes::Grid plain = grid_;
  plain.quantises = false;
  plain.weight = lanes::Format::float32;
  TilesInWork pruned = begin(tiles);
  for (int64_t block = 0; block < blocks(); ++block) solve_block(pruned, block, plain);
  pruned.weight = scatter_columns(pruned.weight, permutation_);
  find_scales(pruned, 0, tiles.size(1));
  work.scale = pruned.scale;
  work.zero = pruned.zero;
}

TilesInWork GptqTiles::begin(const at::Tensor& tiles) const {
  const int64_t count = tiles.size(0), columns = tiles.size(1);
  at::Tensor alive = tiles;
  if (has_dead_) alive = tiles * dead_.logical_not().to(at::kFloat).view({1, columns, 1});
  TilesInWork work;
  if (grid_.quantises) {
    work.scale = at::empty({count, groups_.count, lanes::rows}, at::kFloat);
    work.zero = at::empty_like(work.scale);
    if (!groups_.dynamic && !prunes_before_scales(settings_)) {
      // As published: the scale of a whole row sees dead columns, the scales of groups do not.
      work.weight = settings_.group_size == -1 ? tiles : alive;
      find_scales(work, 0, columns);
    }
  }
  work.weight = gather_columns(alive, permutation_);
  if (grid_.quantises) work.codes = at::empty_like(work.weight);
  if (settings_.sparsity.any()) work.kept = at::empty_like(work.weight);
  work.errors =
      at::empty({count, std::min(settings_.block_size, columns), lanes::rows}, at::kFloat);
  return work;
}

TileSolution GptqTiles::finish(const TilesInWork& work) const {
  const auto scattered = [&](const at::Tensor& tiles) {
    return tiles.defined() ? scatter_columns(tiles, permutation_) : tiles;
  };
  return {scattered(work.weight), scattered(work.codes), work.scale, work.zero,
          scattered(work.kept)};
}

TileSolution GptqTiles::operator()(const at::Tensor& tiles) const {
  TilesInWork work = begin(tiles);
  if (prunes_before_scales(settings_)) find_scales_of_pruned(work, tiles);
  for (int64_t block = 0; block < blocks(); ++block) solve_block(work, block);
  return finish(work);
}

}  // namespace selfcal
