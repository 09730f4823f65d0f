#include <ATen/ATen.h>

#include <limits>
#include <optional>

#include "stages/kernels/cpu/attention_products.hpp"
#include "stages/kernels/cpu/cpu_operations.hpp"

namespace selfcal::kernels {
namespace {

/// Query tokens a tile: the heads that share a key-value head are stacked, to about 252 rows.
int64_t queries_a_tile(int64_t heads_a_group) {
  return std::max<int64_t>(12, 252 / heads_a_group / 12 * 12);
}

/// Shapes of one call; where a token's head begins in q (and the result), in k and in v.
struct Heads {
  int64_t sequences, tokens, heads, key_value_heads, head_dim;
  int64_t group() const { return heads / key_value_heads; }
  int64_t query(int64_t sequence, int64_t token, int64_t head) const {
    return ((sequence * tokens + token) * heads + head) * head_dim;
  }
  int64_t key(int64_t sequence, int64_t token, int64_t head) const {
    return ((sequence * tokens + token) * key_value_heads + head) * head_dim;
  }
};

/// Queries [first, first + count) of one sequence, of all heads that share one key-value head. The
/// softmax runs over blocks of keys (Milakov and Gimelshein, arXiv 1805.02867), so that memory does
/// not grow with the sequence; blocks that no query sees are left out.
template <class Products>
class QueryTile {
 public:
  QueryTile(const Heads& heads, const AttentionLimits& limits, int64_t sequence,
            int64_t key_value_head, int64_t first, int64_t count, float scale, Scratch& scratch)
      : heads_(heads),
        limits_(limits),
        sequence_(sequence),
        key_value_head_(key_value_head),
        first_(first),
        count_(count),
        rows_(heads.group() * count),
        padded_(Products::padded(heads.head_dim)),
        scale_(scale) {
    Parts counted;
    lay_out(counted);
    Parts parts(scratch.floats(counted.taken()));
    lay_out(parts);
  }

  void run(const Matrix& q, const Matrix& k, const Matrix& v, void* result) {
    for (int64_t row = 0; row < rows_; ++row) {
      products_->set_query(row, at_entry(q, query(row)), q.number);
      largest_[row] = -std::numeric_limits<float>::infinity();
      total_[row] = 0;
    }
    const int64_t start = seen_from(first_) / key_block * key_block;
    for (int64_t key = start; key < first_ + count_; key += key_block) see(k, v, key, key > start);
    for (int64_t row = 0; row < rows_; ++row)
      vector_kernels().narrow(outputs_ + row * padded_, nullptr, Number::float32, heads_.head_dim,
                              1 / total_[row], at_entry(result, q.number, query(row)), q.number);
  }

 private:
  void lay_out(Parts& parts) {
    products_.emplace(rows_, heads_.head_dim, scale_, parts);
    outputs_ = parts.take(rows_ * padded_);
    scores_ = parts.take(rows_ * score_stride);
    largest_ = parts.take(rows_);
    total_ = parts.take(rows_);
  }

  int64_t query(int64_t row) const {
    return heads_.query(sequence_, first_ + row % count_,
                        key_value_head_ * heads_.group() + row / count_);
  }

  /// The first key that the query at `token` sees.
  int64_t seen_from(int64_t token) const {
    return limits_.window > 0 ? std::max<int64_t>(0, token + 1 - limits_.window) : 0;
  }

  /// Adds what the queries read of the keys [key, key + key_block), to what they `have` read.
  void see(const Matrix& k, const Matrix& v, int64_t key, bool have) {
    const int64_t keys = std::min(key_block, first_ + count_ - key),
                  place = heads_.key(sequence_, key, key_value_head_),
                  stride = heads_.key_value_heads * heads_.head_dim;
    products_->score({at_entry(k, place), k.number, keys, stride}, scores_);
    for (int64_t row = 0; row < rows_; ++row) {
      const int64_t token = first_ + row % count_;
      weigh(row, std::clamp<int64_t>(seen_from(token) - key, 0, keys),
            std::clamp<int64_t>(token + 1 - key, 0, keys), keys, have);
    }
    products_->read({at_entry(v, place), v.number, keys, stride}, scores_, outputs_, have);
  }

  /// Scores of one row, of which the query sees [begin, end), become weights relative to the
  /// largest score so far.
  void weigh(int64_t row, int64_t begin, int64_t end, int64_t keys, bool rescale) {
    const auto& vectors = vector_kernels();
    float* const scores = scores_ + row * score_stride;
    if (limits_.soft_cap > 0) vectors.soft_cap(scores, end, static_cast<float>(limits_.soft_cap));
    begin = std::min(begin, end);
    std::fill(scores, scores + begin, 0.0f);
    float sum = 0;
    const float before = largest_[row];
    largest_[row] = vectors.weigh(scores + begin, end - begin, keys - begin, before, &sum);
    float correction = 0;
    if (rescale) {
      // (Both are minus infinity while the query has seen no key.)
      correction = before == largest_[row] ? 1.0f : std::exp(before - largest_[row]);
      float* output = outputs_ + row * padded_;
      if (correction != 1) vectors.widen(output, Number::float32, padded_, correction, output);
    }
    total_[row] = total_[row] * correction + sum;
  }

  const Heads& heads_;
  const AttentionLimits& limits_;
  const int64_t sequence_, key_value_head_, first_, count_, rows_, padded_;
  const float scale_;
  std::optional<Products> products_;
  float *outputs_, *scores_, *largest_, *total_;
};

}  // namespace

at::Tensor cpu::causal_attention(const Context& context, const at::Tensor& q, const at::Tensor& k,
                                 const at::Tensor& v, double scale, const AttentionLimits& limits) {
  const Heads heads{q.size(0), q.size(1), q.size(2), k.size(2), q.size(3)};
  require(k.sizes() == v.sizes() && k.size(0) == heads.sequences && k.size(1) == heads.tokens &&
              k.size(3) == heads.head_dim && heads.heads % heads.key_value_heads == 0 &&
              k.scalar_type() == q.scalar_type() && v.scalar_type() == q.scalar_type(),
          "causal_attention: {} heads of {} over {} key-value heads of {}", heads.heads,
          heads.head_dim, k.size(2), k.size(3));
  at::Tensor result = at::empty_like(q);
  const Matrix queries = matrix_of(q), keys = matrix_of(k), values = matrix_of(v);
  void* to = result.mutable_data_ptr();
  const int64_t step = queries_a_tile(heads.group()), blocks = ceil_divide(heads.tokens, step);
  const int64_t pairs = heads.sequences * heads.key_value_heads;
  const auto attend = [&]<class Products>() {
    for_tiles(context, blocks * pairs, [&](int64_t tile) {
      // Late blocks see the most keys: they go first, so that threads end together.
      const int64_t first = (blocks - 1 - tile / pairs) * step;
      static thread_local Scratch scratch;
      QueryTile<Products>(heads, limits, tile % pairs / heads.key_value_heads,
                          tile % heads.key_value_heads, first, std::min(step, heads.tokens - first),
                          static_cast<float>(scale), scratch)
          .run(queries, keys, values, to);
    });
  };
  if (matrix_units() && queries.number == Number::bfloat16)
    attend.template operator()<UnitAttention>();
  else
    attend.template operator()<PanelAttention>();
  return result;
}

}  // namespace selfcal::kernels
