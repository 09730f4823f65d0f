#include "stages/solve/threshold_sparsity.hpp"

#include <ATen/ATen.h>

#include <mutex>

#include "stages/kernels/cpu/tiles.hpp"
#include "stages/solve/threshold.hpp"

namespace selfcal {

void ThresholdSparsity::load(const at::Tensor& weight) {
  rows_of_a_task_ = solver_.rows_of_a_task(weight.size(0));
  tasks_.resize(kernels::ceil_divide(weight.size(0), rows_of_a_task_));
  kernels::for_ranges(solver_.context, weight.size(0), rows_of_a_task_,
                      [&](int64_t first, int64_t count) {
                        tasks_[first / rows_of_a_task_] = {
                            count, tiles_.begin(load_tiles(weight, first, count)), {}};
                      });
}

void ThresholdSparsity::score(Task& task, int64_t block) const {
  const int64_t columns = tiles_.columns_of(block), size = columns * lanes::rows;
  task.scores.resize(task.work.tiles() * size);
  for (int64_t tile = 0; tile < task.work.tiles(); ++tile)
    tiles_.score_block(task.work, block, tile, task.scores.data() + tile * size);
}

float ThresholdSparsity::find_threshold(int64_t block, const RowTeam& team) const {
  const int64_t columns = tiles_.columns_of(block);
  ThresholdSearch search(share_);
  for (int pass = 0; pass < ThresholdSearch::passes; ++pass) {
    search.clear();
    std::mutex adding;
    kernels::for_tiles(solver_.context, int64_t(tasks_.size()), [&](int64_t i) {
      const Task& task = tasks_[i];
      std::vector<int64_t> histogram(ThresholdSearch::size());
      for (int64_t column = 0; column < task.work.tiles() * columns; ++column) {
        const int64_t tile = column / columns,
                      rows = std::min(lanes::rows, task.rows - tile * lanes::rows);
        search.count({task.scores.data() + column * lanes::rows, size_t(rows)}, histogram);
      }
      const std::lock_guard lock(adding);
      for (size_t bin = 0; bin < histogram.size(); ++bin) search.histogram()[bin] += histogram[bin];
    });
    team.sum(search.histogram());
    search.narrow();
  }
  return search.threshold();
}

void ThresholdSparsity::keep_above(Task& task, int64_t block, float threshold) const {
  const int64_t size = tiles_.columns_of(block) * lanes::rows;
  for (int64_t tile = 0; tile < task.work.tiles(); ++tile) {
    const float* scores = task.scores.data() + tile * size;
    float* kept = tiles_.kept_of_block(task.work, block, tile);
    for (int64_t i = 0; i < size; ++i) kept[i] = scores[i] > threshold ? 1.0f : 0.0f;
  }
}

void ThresholdSparsity::solve(const at::Tensor& weight, const RowTeam& team) {
  const auto for_tasks = [&](const std::function<void(Task&)>& body) {
    kernels::for_tiles(solver_.context, int64_t(tasks_.size()),
                       [&](int64_t i) { body(tasks_[i]); });
  };
  team.run([&] { load(weight); });
  for (int64_t block = 0; block < tiles_.blocks(); ++block) {
    for_tasks([&](Task& task) { score(task, block); });
    const float threshold = find_threshold(block, team);
    for_tasks([&](Task& task) {
      keep_above(task, block, threshold);
      tiles_.solve_block(task.work, block);
    });
  }
}

TileSolution ThresholdSparsity::finish(int64_t first) const {
  return tiles_.finish(tasks_[first / rows_of_a_task_].work);
}

}  // namespace selfcal
