#include <ATen/ATen.h>

#include <limits>

#include "stages/kernels/cpu/gemm.hpp"
#include "stages/kernels/cpu/loops.hpp"
#include "stages/kernels/cpu/tiles.hpp"

namespace selfcal::kernels {
namespace {

constexpr int64_t key_block = 256;

/// Query tokens a tile: the heads that share a key-value head are stacked, to about 256 rows.
int64_t queries_a_tile(int64_t heads_a_group) {
  return std::max<int64_t>(16, 256 / heads_a_group / 16 * 16);
}

/// Shapes of one call; offsets of a token's head in q (and the result) and in k and v.
struct Shape {
  int64_t sequences, tokens, heads, key_value_heads, head_dim;
  int64_t group() const { return heads / key_value_heads; }
  int64_t query(int64_t sequence, int64_t token, int64_t head) const {
    return ((sequence * tokens + token) * heads + head) * head_dim;
  }
  int64_t key(int64_t sequence, int64_t token, int64_t head) const {
    return ((sequence * tokens + token) * key_value_heads + head) * head_dim;
  }
};

/// One tile: the queries [first, first + count) of one sequence, of all heads of one key-value
/// head. The softmax runs over blocks of keys (Milakov and Gimelshein, arXiv 1805.02867), so memory
/// does not grow with the sequence.
template <class T>
class AttentionTile {
 public:
  AttentionTile(const Shape& shape, Scratch& scratch) : shape_(shape) {
    const int64_t rows = queries_a_tile(shape.group()) * shape.group(),
                  d = (shape.head_dim + 15) / 16 * 16;
    float* memory = scratch.floats(2 * rows * d + 2 * key_block * d + rows * key_block + 2 * rows);
    queries_ = memory;
    outputs_ = queries_ + rows * d;
    keys_ = outputs_ + rows * d;
    values_ = keys_ + key_block * d;
    scores_ = values_ + key_block * d;
    largest_ = scores_ + rows * key_block;
    total_ = largest_ + rows;
  }

  void run(const T* q, const T* k, const T* v, T* result, int64_t sequence, int64_t key_value_head,
           int64_t first, int64_t count, float scale) {
    const int64_t d = shape_.head_dim, rows = shape_.group() * count,
                  first_head = key_value_head * shape_.group();
    for (int64_t row = 0; row < rows; ++row) {
      widen(q + shape_.query(sequence, first + row % count, first_head + row / count), d, scale,
            queries_ + row * d);
      largest_[row] = -std::numeric_limits<float>::infinity();
      total_[row] = 0;
    }
    for (int64_t key = 0; key < first + count; key += key_block) {
      const int64_t keys = std::min(key_block, first + count - key);
      for (int64_t i = 0; i < keys; ++i) {
        widen(k + shape_.key(sequence, key + i, key_value_head), d, 1, keys_ + i * d);
        widen(v + shape_.key(sequence, key + i, key_value_head), d, 1, values_ + i * d);
      }
      multiply_transposed(rows, keys, d, {queries_, d}, {keys_, d}, {scores_, keys});
      for (int64_t row = 0; row < rows; ++row)
        softmax_block(row, keys, first + row % count + 1 - key, key > 0);
      multiply(rows, d, keys, {scores_, keys}, {values_, d}, {outputs_, d}, key > 0);
    }
    for (int64_t row = 0; row < rows; ++row)
      narrow(outputs_ + row * d, static_cast<const T*>(nullptr), d, 1 / total_[row],
             result + shape_.query(sequence, first + row % count, first_head + row / count));
  }

 private:
  /// Turns a row's scores of one block into weights relative to the largest score so far; only the
  /// first `visible` keys are seen.
  void softmax_block(int64_t row, int64_t keys, int64_t visible, bool rescale) {
    float* scores = scores_ + row * keys;
    visible = std::clamp<int64_t>(visible, 0, keys);
    std::fill(scores + visible, scores + keys, 0.0f);
    if (visible == 0) return;
    const float largest = std::max(largest_[row], maximum(scores, visible));
    const float sum = exponentials(scores, visible, largest);
    const float correction = rescale ? std::exp(largest_[row] - largest) : 0.0f;
    if (rescale) scale_in_place(outputs_ + row * shape_.head_dim, shape_.head_dim, correction);
    total_[row] = total_[row] * correction + sum;
    largest_[row] = largest;
  }

  const Shape shape_;
  float *queries_, *outputs_, *keys_, *values_, *scores_, *largest_, *total_;
};

}  // namespace

at::Tensor causal_attention(const Context& context, const at::Tensor& q, const at::Tensor& k,
                            const at::Tensor& v, double scale) {
  const Shape shape{q.size(0), q.size(1), q.size(2), k.size(2), q.size(3)};
  require(q.is_contiguous() && k.is_contiguous() && v.is_contiguous() && k.sizes() == v.sizes() &&
              k.size(0) == shape.sequences && k.size(1) == shape.tokens &&
              k.size(3) == shape.head_dim && shape.heads % shape.key_value_heads == 0,
          "causal_attention: {} heads of {} over {} key-value heads of {}", shape.heads,
          shape.head_dim, k.size(2), k.size(3));
  at::Tensor result = at::empty_like(q);
  with_element(q, [&](auto element) {
    using T = decltype(element);
    const T *q_data = q.const_data_ptr<T>(), *k_data = k.const_data_ptr<T>(),
            *v_data = v.const_data_ptr<T>();
    T* result_data = result.mutable_data_ptr<T>();
    const int64_t step = queries_a_tile(shape.group()), blocks = ceil_divide(shape.tokens, step);
    for_tiles(context, blocks * shape.sequences * shape.key_value_heads, [&](int64_t tile) {
      // Late blocks see the most keys: they go first, so that threads end together.
      const int64_t block = blocks - 1 - tile / (shape.sequences * shape.key_value_heads);
      const int64_t sequence = tile / shape.key_value_heads % shape.sequences,
                    head = tile % shape.key_value_heads;
      static thread_local Scratch scratch;
      AttentionTile<T>(shape, scratch)
          .run(q_data, k_data, v_data, result_data, sequence, head, block * step,
               std::min(step, shape.tokens - block * step), static_cast<float>(scale));
    });
  });
  return result;
}

}  // namespace selfcal::kernels
