#include "stages/solve/gptq.hpp"

#include <ATen/ATen.h>

#include <algorithm>

namespace selfcal {
namespace {

constexpr int64_t step_columns =
    16;  // rounded one after the other before the rest of the block hears of them

}  // namespace

/// The tiles in the factor's order of columns.
struct GptqTiles::Work {
  at::Tensor weight, codes;  // [tiles, columns, 32]
  at::Tensor scale, zero;    // [tiles, groups, 32]
  at::Tensor errors;         // [tiles, block, 32]

  int64_t tiles() const { return weight.size(0); }
  int64_t tile_size() const { return weight.stride(0); }
  int64_t errors_size() const { return errors.stride(0); }
  float* weight_at(int64_t tile, int64_t position) const {
    return weight.mutable_data_ptr<float>() + tile * tile_size() + position * lanes::rows;
  }
  float* codes_at(int64_t tile, int64_t position) const {
    return codes.mutable_data_ptr<float>() + tile * tile_size() + position * lanes::rows;
  }
  float* scale_at(int64_t tile, int64_t group) const {
    return scale.mutable_data_ptr<float>() + tile * scale.stride(0) + group * lanes::rows;
  }
  float* zero_at(int64_t tile, int64_t group) const {
    return zero.mutable_data_ptr<float>() + tile * zero.stride(0) + group * lanes::rows;
  }
  float* errors_at(int64_t tile, int64_t row) const {
    return errors.mutable_data_ptr<float>() + tile * errors_size() + row * lanes::rows;
  }
};

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
  const int64_t columns = upper_.size(0);
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
void GptqTiles::find_scales(Work& work, int64_t first, int64_t last) const {
  const int64_t columns = upper_.size(0), size = groups_.size;
  for (int64_t group = (first + size - 1) / size; group * size < last; ++group) {
    const int64_t begin = group * size, count = std::min(size, columns - begin);
    for (int64_t i = 0; i < work.tiles(); ++i) {
      kernels_.find_scale(grid_, work.weight_at(i, begin), count, work.scale_at(i, group),
                          work.zero_at(i, group));
    }
  }
}

void GptqTiles::solve_block(Work& work, const Block& block) const {
  const int64_t columns = upper_.size(0);
  const bool published = settings_.group_parameters == GroupParameters::published;
  if (groups_.dynamic && published) find_scales(work, block.first, block.last);
  for (int64_t index = block.first_step; index < block.last_step; ++index) {
    const Step& step = steps_[index];
    if (groups_.dynamic && !published) find_scales(work, step.first, step.first + 1);
    const int64_t row = step.first - block.first;
    for (int64_t i = 0; i < work.tiles(); ++i) {
      kernels_.round_with_feedback(grid_, work.weight_at(i, step.first), step.last - step.first,
                                   upper_.const_data_ptr<float>() + step.first * (columns + 1),
                                   columns, groups_.of_position.data() + step.first,
                                   work.scale_at(i, 0), work.zero_at(i, 0),
                                   work.codes_at(i, step.first), work.errors_at(i, row));
    }
    if (step.within_block >= 0) {
      panels_.subtract(step.within_block, work.tiles(), work.errors_at(0, row), work.errors_size(),
                       work.weight_at(0, step.last), work.tile_size());
    }
  }
  if (block.beyond >= 0) {
    panels_.subtract(block.beyond, work.tiles(), work.errors_at(0, 0), work.errors_size(),
                     work.weight_at(0, block.last), work.tile_size());
  }
}

TileSolution GptqTiles::operator()(const at::Tensor& tiles) const {
  const int64_t count = tiles.size(0), columns = tiles.size(1);
  at::Tensor alive = tiles;
  if (has_dead_) alive = tiles * dead_.logical_not().to(at::kFloat).view({1, columns, 1});
  Work work;
  work.scale = at::empty({count, groups_.count, lanes::rows}, at::kFloat);
  work.zero = at::empty_like(work.scale);
  if (!groups_.dynamic) {
    // As published: the scale of a whole row sees dead columns, the scales of groups do not.
    work.weight = settings_.group_size == -1 ? tiles : alive;
    find_scales(work, 0, columns);
  }
  work.weight = gather_columns(alive, permutation_);
  work.codes = at::empty_like(work.weight);
  work.errors =
      at::empty({count, std::min(settings_.block_size, columns), lanes::rows}, at::kFloat);
  for (const Block& block : blocks_) solve_block(work, block);
  return {scatter_columns(work.weight, permutation_), scatter_columns(work.codes, permutation_),
          work.scale, work.zero};
}

}  // namespace selfcal
