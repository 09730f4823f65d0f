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
      panels_(upper_, cut_into_blocks(), kernels, context) {}

std::vector<Rectangle> GptqTiles::cut_into_blocks() {
  const int64_t columns = upper_.size(0),
                step_columns = by_row::columns_of_step(settings_.sparsity.pattern);
  // Scales that are found on the way are found between steps.
  const bool stop_at_groups =
      groups_.dynamic && settings_.group_parameters == GroupParameters::current;
  std::vector<Rectangle> rectangles;
  const auto rectangle = [&](int64_t row, int64_t depth, int64_t column, int64_t last) -> int64_t {
    if (column == last) return -1;
    rectangles.push_back({row, depth, column, last - column});
    return int64_t(rectangles.size()) - 1;
  };
  for (int64_t first = 0; first < columns; first += settings_.block_size) {
    Block block{first, std::min(first + settings_.block_size, columns), int64_t(steps_.size()), 0,
                0};
    for (int64_t at = first; at < block.last;) {
      int64_t last = std::min(at + step_columns, block.last);
      if (stop_at_groups) last = std::min(last, (at / groups_.size + 1) * groups_.size);
      steps_.push_back({at, last, rectangle(at, last - at, last, block.last)});
      at = last;
    }
    block.last_step = int64_t(steps_.size());
    block.beyond = rectangle(first, block.last - first, block.last, columns);
    blocks_.push_back(block);
  }
  return rectangles;
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
void GptqTiles::round_step(TilesInWork& work, const Step& step, int64_t row, int64_t tile) const {
  const int64_t columns = upper_.size(0), count = step.last - step.first;
  const float* upper = upper_.const_data_ptr<float>() + step.first * (columns + 1);
  const int32_t* group = groups_.of_position.data() + step.first;
  float *weight = work.weight_at(tile, step.first), *scale = work.scale_at(tile, 0),
        *zero = work.zero_at(tile, 0), *codes = work.codes_at(tile, step.first),
        *errors = work.errors_at(tile, row);
  if (settings_.sparsity.any())
    kernels_.prune_with_feedback(grid_, settings_.sparsity.pattern, weight, count, upper, columns,
                                 group, scale, zero, work.kept_at(tile, step.first), codes, errors);
  else
    kernels_.round_with_feedback(grid_, weight, count, upper, columns, group, scale, zero, codes,
                                 errors);
}

void GptqTiles::score_block(const TilesInWork& work, int64_t block, int64_t tile,
                            float* scores) const {
  const int64_t first = blocks_[block].first, columns = upper_.size(0);
  kernels_.score_columns(work.weight_at(tile, first), columns_of(block),
                         upper_.const_data_ptr<float>() + first * (columns + 1), columns, scores);
}

void GptqTiles::solve_block(TilesInWork& work, int64_t index) const {
  const Block& block = blocks_[index];
  const bool on_the_way = groups_.dynamic && grid_.quantises,
             published = settings_.group_parameters == GroupParameters::published;
  if (on_the_way && published) find_scales(work, block.first, block.last);
  for (int64_t i = block.first_step; i < block.last_step; ++i) {
    const Step& step = steps_[i];
    if (on_the_way && !published) find_scales(work, step.first, step.first + 1);
    const int64_t row = step.first - block.first;
    for (int64_t tile = 0; tile < work.tiles(); ++tile) round_step(work, step, row, tile);
    if (step.within_block >= 0) {
      panels_.subtract(step.within_block, work.tiles(), work.errors_at(0, row),
                       work.errors.stride(0), work.weight_at(0, step.last), work.tile_size());
    }
  }
  if (block.beyond >= 0) {
    panels_.subtract(block.beyond, work.tiles(), work.errors_at(0, 0), work.errors.stride(0),
                     work.weight_at(0, block.last), work.tile_size());
  }
}

TilesInWork GptqTiles::begin(const at::Tensor& tiles) const {
  const int64_t count = tiles.size(0), columns = tiles.size(1);
  at::Tensor alive = tiles;
  if (has_dead_) alive = tiles * dead_.logical_not().to(at::kFloat).view({1, columns, 1});
  TilesInWork work;
  if (grid_.quantises) {
    work.scale = at::empty({count, groups_.count, lanes::rows}, at::kFloat);
    work.zero = at::empty_like(work.scale);
    if (!groups_.dynamic) {
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
  for (int64_t block = 0; block < blocks(); ++block) solve_block(work, block);
  return finish(work);
}

}  // namespace selfcal
