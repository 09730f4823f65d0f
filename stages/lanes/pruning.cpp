// Which weights go, and their errors fed forward. Compiled without contraction: every instruction
// set must come to the same scores.
#include "stages/lanes/rounding.hpp"

namespace selfcal::lanes::SELFCAL_INSTRUCTION_SET {

void score_columns(const float* tile, int64_t columns, const float* upper, int64_t stride,
                   float* scores) {
  for (int64_t j = 0; j < columns; ++j) {
    const Vector pivot = all(upper[j * stride + j]);
    for (int64_t row = 0; row < rows; row += width) {
      const Vector size = absolute(load(tile + j * rows + row));
      store(scores + j * rows + row, size / pivot);
    }
  }
}

namespace {

/// Of one vector of rows: column j stays if at least `zeros` columns go before it.
void keep_best_of_vector(const float* scores, int zeros, int of, float* kept) {
  for (int j = 0; j < of; ++j) {
    const Vector mine = load(scores + j * rows);
    Integers before{};
    for (int i = 0; i < of; ++i) {
      const Vector other = load(scores + i * rows);
      before -= i < j ? other <= mine : other < mine;
    }
    store(kept + j * rows, before >= zeros ? all(1.0f) : all(0.0f));
  }
}

template <bool quantise>
void prune_run(const Grid& grid, const Pattern& pattern, float* tile, int64_t columns,
               const float* upper, int64_t stride, const int32_t* group, const float* scale,
               const float* zero, float* kept, float* codes, float* errors) {
  constexpr int vectors = rows / width;
  for (int64_t j = 0; j < columns; ++j) {
    if (pattern.of > 0 && j % pattern.of == 0) {
      float scores[Pattern::longest * rows];
      score_columns(tile + j * rows, pattern.of, upper + j * (stride + 1), stride, scores);
      for (int64_t row = 0; row < rows; row += width) {
        keep_best_of_vector(scores + row, pattern.zeros, pattern.of, kept + j * rows + row);
      }
    }
    const float* weights_of_errors = upper + j * stride;
    Vector error[vectors];
    for (int v = 0; v < vectors; ++v) {
      const int64_t at = j * rows + v * width;
      const Vector weight = load(tile + at);
      const Vector wanted = load(kept + at) != all(0.0f) ? weight : all(0.0f);
      Vector stored;
      if constexpr (quantise) {
        const int64_t parameters = group[j] * rows + v * width;
        stored = round_vector(grid, wanted, scale + parameters, zero + parameters, codes + at);
      } else {
        stored = round_to(grid.weight, wanted);
      }
      error[v] = (weight - stored) / weights_of_errors[j];
      store(tile + at, stored);
      store(errors + at, error[v]);
    }
    for (int64_t i = j + 1; i < columns; ++i) {
      const Vector factor = all(weights_of_errors[i]);
      for (int v = 0; v < vectors; ++v) {
        float* at = tile + i * rows + v * width;
        store(at, load(at) - error[v] * factor);
      }
    }
  }
}

}  // namespace

void keep_best(const float* scores, int64_t columns, const Pattern& pattern, float* kept) {
  for (int64_t j = 0; j < columns; j += pattern.of) {
    for (int64_t row = 0; row < rows; row += width) {
      keep_best_of_vector(scores + j * rows + row, pattern.zeros, pattern.of,
                          kept + j * rows + row);
    }
  }
}

void prune_with_feedback(const Grid& grid, const Pattern& pattern, float* tile, int64_t columns,
                         const float* upper, int64_t stride, const int32_t* group,
                         const float* scale, const float* zero, float* kept, float* codes,
                         float* errors) {
  const auto run = grid.quantises ? prune_run<true> : prune_run<false>;
  run(grid, pattern, tile, columns, upper, stride, group, scale, zero, kept, codes, errors);
}

}  // namespace selfcal::lanes::SELFCAL_INSTRUCTION_SET
