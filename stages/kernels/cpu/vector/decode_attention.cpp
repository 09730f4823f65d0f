// One query against a cache, the heads that share keys together: scores of `width` tokens at a
// time, a softmax in float32, then the weighted values of `width` tokens at a time. Sums run in the
// order of the tokens.
#include "stages/kernels/cpu/vector/kernels.hpp"
#include "stages/kernels/cpu/vector/vector.hpp"

namespace selfcal::kernels::SELFCAL_INSTRUCTIONS {
namespace {

SELFCAL_INLINE int64_t padded(int64_t count) { return (count + width - 1) / width * width; }

/// One row of head_dim numbers as float32, padded with zeros.
template <class Stored>
SELFCAL_INLINE void widen_row(const Stored* from, int64_t head_dim, float scale, float* to) {
  int64_t d = 0;
  for (; d + width <= head_dim; d += width) write(to + d, read_widened(from + d) * scale);
  for (; d < padded(head_dim); ++d) to[d] = d < head_dim ? widen(from[d]) * scale : 0.0f;
}

/// Rows [token, token + width) of a cache as float32; rows past its end are zeros.
template <class Stored>
SELFCAL_INLINE void widen_panel(const Stored* cache, int64_t token, const AttentionTile& tile,
                                float* panel) {
  const int64_t head_dim = tile.head_dim, stride = padded(head_dim);
  const int64_t rows = tile.tokens - token < width ? tile.tokens - token : width;
  const Stored* from = cache + token * head_dim;
  if (head_dim == stride) {  // one run of numbers
#pragma GCC unroll 4
    for (int64_t i = 0; i < rows * stride; i += width) write(panel + i, read_widened(from + i));
  } else {
    for (int64_t row = 0; row < rows; ++row)
      widen_row(from + row * head_dim, head_dim, 1.0f, panel + row * stride);
  }
  if (rows < width) std::memset(panel + rows * stride, 0, (width - rows) * stride * sizeof(float));
}

/// Dot products of one query with the rows of a panel.
SELFCAL_INLINE Floats score_panel(const float* query, const float* panel, int64_t stride) {
  Floats sums[width];
#pragma GCC unroll 16
  for (int row = 0; row < width; ++row) sums[row] = Floats{};
  for (int64_t d = 0; d < stride; d += width) {
    const Floats q = read<Floats>(query + d);
#pragma GCC unroll 16
    for (int row = 0; row < width; ++row) sums[row] += q * read<Floats>(panel + row * stride + d);
  }
  transpose_square(sums);
  Floats total = sums[0];
#pragma GCC unroll 16
  for (int i = 1; i < width; ++i) total += sums[i];
  return total;
}

/// result += weights x the rows of a panel.
SELFCAL_INLINE void add_panel(const float* weights, const float* panel, int64_t stride,
                              float* result) {
  Floats weight[width];
#pragma GCC unroll 16
  for (int row = 0; row < width; ++row) weight[row] = all(weights[row]);
  for (int64_t d = 0; d < stride; d += width) {
    Floats sum = read<Floats>(result + d);
#pragma GCC unroll 16
    for (int row = 0; row < width; ++row)
      sum += weight[row] * read<Floats>(panel + row * stride + d);
    write(result + d, sum);
  }
}

/// Scores to weights that sum to 1; the padding behind `tokens` becomes 0.
void softmax(float* scores, int64_t tokens) {
  for (int64_t t = tokens; t < padded(tokens); ++t) scores[t] = -__builtin_inff();
  const float largest = maximum(scores, tokens);
  Floats sums = {};
  for (int64_t t = 0; t < tokens; t += width) {
    const Floats weights = exponential(read<Floats>(scores + t) - largest);
    write(scores + t, weights);
    sums += weights;
  }
  float sum = 0;
  for (int lane = 0; lane < width; ++lane) sum += sums[lane];
  for (int64_t t = 0; t < tokens; t += width) write(scores + t, read<Floats>(scores + t) / sum);
}

template <class Stored>
void attend(const AttentionTile& tile) {
  const auto* keys = static_cast<const Stored*>(tile.keys);
  const auto* values = static_cast<const Stored*>(tile.values);
  const int64_t stride = padded(tile.head_dim), tokens = padded(tile.tokens);
  float* const panel = tile.scratch;
  float* const query = panel + width * stride;
  float* const scores = query + tile.heads * stride;
  float* const result = query;  // the queries are not needed once the scores are there

  for (int64_t head = 0; head < tile.heads; ++head)
    widen_row(static_cast<const Stored*>(tile.query) + head * tile.head_dim, tile.head_dim,
              tile.scale, query + head * stride);
  for (int64_t token = 0; token < tile.tokens; token += width) {
    widen_panel(keys, token, tile, panel);
    for (int64_t head = 0; head < tile.heads; ++head)
      write(scores + head * tokens + token, score_panel(query + head * stride, panel, stride));
  }
  if (tile.soft_cap > 0)
    for (int64_t head = 0; head < tile.heads; ++head)
      soft_cap(scores + head * tokens, tile.tokens, tile.soft_cap);
  for (int64_t head = 0; head < tile.heads; ++head) softmax(scores + head * tokens, tile.tokens);

  std::memset(result, 0, tile.heads * stride * sizeof(float));
  for (int64_t token = 0; token < tile.tokens; token += width) {
    widen_panel(values, token, tile, panel);
    for (int64_t head = 0; head < tile.heads; ++head)
      add_panel(scores + head * tokens + token, panel, stride, result + head * stride);
  }
  for (int64_t head = 0; head < tile.heads; ++head)
    for (int64_t d = 0; d < tile.head_dim; ++d)
      write_rounded(static_cast<Stored*>(tile.result) + head * tile.head_dim + d,
                    result[head * stride + d]);
}

}  // namespace

int64_t attention_scratch(int64_t heads, int64_t tokens, int64_t head_dim) {
  return (width + heads) * padded(head_dim) + heads * padded(tokens);
}

void attention_tile(const AttentionTile& tile) {
  if (tile.number == Number::float32) {
    attend<float>(tile);
  } else {
    attend<uint16_t>(tile);
  }
}

}  // namespace selfcal::kernels::SELFCAL_INSTRUCTIONS
