// The two products of attention for the queries of one tile: scores of a block of keys, and what
// the weighed values add up to.
#pragma once
#include "stages/kernels/cpu/matrix.hpp"
#include "stages/kernels/cpu/matrix_units.hpp"

namespace selfcal::kernels {

/// Keys that are seen at once.
inline constexpr int64_t key_block = 256;
inline constexpr int64_t score_stride = key_block + 16;  // rows begin on different cache lines

/// Hands out parts of a memory of floats, or counts them where there is none.
class Parts {
 public:
  explicit Parts(float* memory = nullptr) : memory_(memory) {}
  float* take(int64_t floats) {
    const int64_t begin = taken_;
    taken_ += ceil_divide(floats, 16) * 16;
    return memory_ ? memory_ + begin : nullptr;
  }
  int64_t taken() const { return taken_; }

 private:
  float* memory_;
  int64_t taken_ = 0;
};

/// In float32, by panels.
class PanelAttention {
 public:
  /// Numbers that a row of outputs takes.
  static int64_t padded(int64_t head_dim);
  /// Scores are products with `rows` queries times `scale`.
  PanelAttention(int64_t rows, int64_t head_dim, float scale, Parts& parts);

  /// Query `row` is the head_dim numbers from `from` on.
  void set_query(int64_t row, const void* from, Number number);
  /// scores[row][j] = scale * query . key j; keys: `count` rows, `columns` apart.
  void score(const Matrix& keys, float* scores);
  /// outputs[row] (+)= sum_j scores[row][j] value j.
  void read(const Matrix& values, const float* scores, float* outputs, bool accumulate);

 private:
  const int64_t rows_, head_dim_, panel_, padded_;
  const float scale_;
  float *queries_, *keys_, *values_;
};

/// The same of bfloat16 heads on matrix units. Weights are split into two bfloat16 each, so that 16
/// of their bits count.
class UnitAttention {
 public:
  static int64_t padded(int64_t head_dim) { return padded_depth(head_dim); }
  UnitAttention(int64_t rows, int64_t head_dim, float scale, Parts& parts);

  void set_query(int64_t row, const void* from, Number number);
  void score(const Matrix& keys, float* scores);
  void read(const Matrix& values, const float* scores, float* outputs, bool accumulate);

 private:
  const MatrixUnits& units_;
  const int64_t rows_, head_dim_, padded_;
  const float scale_;
  uint16_t *queries_, *high_, *low_;
  int32_t *keys_, *values_;
};

}  // namespace selfcal::kernels
