// One query against a cache, the heads that share keys together: scores of `width` tokens at a
// time, a softmax in float32, then the weighted values, token after token. Keys and values are
// widened in registers, once for up to `heads_at_once` heads.
#include "stages/kernels/cpu/vector/kernels.hpp"
#include "stages/kernels/cpu/vector/vector.hpp"

namespace selfcal::kernels::SELFCAL_INSTRUCTIONS {
namespace {

constexpr int heads_at_once = 4;
constexpr int tokens_at_once = 4;                     // whose scores are summed side by side
constexpr int vectors_at_once = width == 16 ? 4 : 2;  // of a row of values
constexpr int64_t tokens_of_a_block = 128;            // whose values all heads read in turn

SELFCAL_INLINE int64_t padded(int64_t count) { return (count + width - 1) / width * width; }

/// Rows of head_dim numbers as float32, padded with zeros.
template <class Stored>
void widen_rows(const Stored* from, int64_t rows, int64_t head_dim, float scale, float* to) {
  for (int64_t row = 0; row < rows; ++row, from += head_dim, to += padded(head_dim)) {
    int64_t d = 0;
    for (; d + width <= head_dim; d += width) write(to + d, read_widened(from + d) * scale);
    for (; d < padded(head_dim); ++d) to[d] = d < head_dim ? widen(from[d]) * scale : 0.0f;
  }
}

/// Once a cache line: what lies some rows further on.
template <class Stored>
SELFCAL_INLINE void fetch_ahead(const Stored* row, int64_t depth, int64_t d) {
  constexpr int64_t line = 64 / sizeof(Stored), rows = 32;
  if (d % line == 0) __builtin_prefetch(row + rows * depth + d);
}

/// Lanes that are `size` apart added up: of a in lanes without that bit, of b in the others.
template <int size>
SELFCAL_INLINE Floats fold(Floats a, Floats b) {
  Integers lane;
  for (int j = 0; j < width; ++j) lane[j] = j;
  const Integers upper = (lane & size) != 0;
  const Integers first = (upper & (lane - size + width)) | (~upper & lane);
  const Integers second = (upper & (lane + width)) | (~upper & (lane + size));
  return __builtin_shuffle(a, b, first) + __builtin_shuffle(a, b, second);
}

/// Of `width` vectors, four and four folded into one: the sum of each, in its own lane.
SELFCAL_INLINE Floats fold_rest(const Floats (&folded)[width / tokens_at_once]) {
  if constexpr (width == 16)
    return fold<8>(fold<4>(folded[0], folded[1]), fold<4>(folded[2], folded[3]));
  else if constexpr (width == 8)
    return fold<4>(folded[0], folded[1]);
  else
    return folded[0];
}

/// Scores of `width` tokens, those past `last` as of the last. queries: [heads][depth]; keys:
/// [tokens][depth], a multiple of width; scores: rows `tokens` apart.
template <int heads, class Stored>
SELFCAL_INLINE void score(const float* queries, const Stored* keys, int64_t depth, int64_t last,
                          float* scores, int64_t tokens) {
  Floats folded[heads][width / tokens_at_once];
#pragma GCC unroll 4
  for (int group = 0; group < width / tokens_at_once; ++group) {
    const Stored* row[tokens_at_once];
    Floats sums[heads][tokens_at_once];
#pragma GCC unroll 4
    for (int i = 0; i < tokens_at_once; ++i) {
      const int64_t token = group * tokens_at_once + i;
      row[i] = keys + (token < last ? token : last) * depth;
#pragma GCC unroll 4
      for (int head = 0; head < heads; ++head) sums[head][i] = Floats{};
    }
    for (int64_t d = 0; d < depth; d += width) {
      Floats query[heads];
#pragma GCC unroll 4
      for (int head = 0; head < heads; ++head)
        query[head] = read<Floats>(queries + head * depth + d);
#pragma GCC unroll 4
      for (int i = 0; i < tokens_at_once; ++i) {
        fetch_ahead(row[i], depth, d);
        const Floats key = read_widened(row[i] + d);
#pragma GCC unroll 4
        for (int head = 0; head < heads; ++head) sums[head][i] += query[head] * key;
      }
    }
#pragma GCC unroll 4
    for (int head = 0; head < heads; ++head)
      folded[head][group] =
          fold<2>(fold<1>(sums[head][0], sums[head][1]), fold<1>(sums[head][2], sums[head][3]));
  }
#pragma GCC unroll 4
  for (int head = 0; head < heads; ++head) write(scores + head * tokens, fold_rest(folded[head]));
}

/// result[heads][depth] += weights x `vectors` vectors of `count` rows of values, in their order.
/// weights: rows `tokens` apart.
template <int heads, int vectors, class Stored>
SELFCAL_INLINE void add_values(const float* weights, int64_t tokens, const Stored* values,
                               int64_t depth, int64_t count, float* result) {
  Floats sums[heads][vectors];
#pragma GCC unroll 4
  for (int head = 0; head < heads; ++head)
#pragma GCC unroll 4
    for (int v = 0; v < vectors; ++v)
      sums[head][v] = read<Floats>(result + head * depth + v * width);
  for (int64_t token = 0; token < count; ++token, values += depth) {
    Floats weight[heads];
#pragma GCC unroll 4
    for (int head = 0; head < heads; ++head) weight[head] = all(weights[head * tokens + token]);
#pragma GCC unroll 4
    for (int v = 0; v < vectors; ++v) {
      fetch_ahead(values, depth, v * width);
      const Floats value = read_widened(values + v * width);
#pragma GCC unroll 4
      for (int head = 0; head < heads; ++head) sums[head][v] += weight[head] * value;
    }
  }
#pragma GCC unroll 4
  for (int head = 0; head < heads; ++head)
#pragma GCC unroll 4
    for (int v = 0; v < vectors; ++v) write(result + head * depth + v * width, sums[head][v]);
}

/// The same of all vectors.
template <int heads, class Stored>
SELFCAL_INLINE void add_rows(const float* weights, int64_t tokens, const Stored* values,
                             int64_t depth, int64_t count, float* result) {
  int64_t d = 0;
  for (; d + vectors_at_once * width <= depth; d += vectors_at_once * width)
    add_values<heads, vectors_at_once>(weights, tokens, values + d, depth, count, result + d);
  for (; d < depth; d += width)
    add_values<heads, 1>(weights, tokens, values + d, depth, count, result + d);
}

/// Calls body.template operator()<n>(first head) for runs of n heads, at most heads_at_once.
template <class Body>
SELFCAL_INLINE void for_heads(int64_t heads, Body body) {
  for (int64_t head = 0; head < heads; head += heads_at_once) switch (heads - head) {
      case 1:
        body.template operator()<1>(head);
        break;
      case 2:
        body.template operator()<2>(head);
        break;
      case 3:
        body.template operator()<3>(head);
        break;
      default:
        body.template operator()<heads_at_once>(head);
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

/// Of rows whose length is a multiple of width. queries: [heads][depth], scaled, which become the
/// result.
template <class Stored>
void attend_rows(const AttentionTile& tile, const Stored* keys, const Stored* values, int64_t depth,
                 float* queries, float* scores) {
  const int64_t tokens = padded(tile.tokens);
  for (int64_t token = 0; token < tile.tokens; token += width)
    for_heads(tile.heads, [&]<int heads>(int64_t head) {
      score<heads>(queries + head * depth, keys + token * depth, depth, tile.tokens - 1 - token,
                   scores + head * tokens + token, tokens);
    });
  for (int64_t head = 0; head < tile.heads; ++head) {
    if (tile.soft_cap > 0) soft_cap(scores + head * tokens, tile.tokens, tile.soft_cap);
    softmax(scores + head * tokens, tile.tokens);
  }
  std::memset(queries, 0, tile.heads * depth * sizeof(float));
  for (int64_t token = 0; token < tile.tokens; token += tokens_of_a_block) {
    const int64_t left = tile.tokens - token;
    for_heads(tile.heads, [&]<int heads>(int64_t head) {
      add_rows<heads>(scores + head * tokens + token, tokens, values + token * depth, depth,
                      left < tokens_of_a_block ? left : tokens_of_a_block, queries + head * depth);
    });
  }
}

template <class Stored>
void attend(const AttentionTile& tile) {
  const int64_t depth = padded(tile.head_dim);
  float* const queries = tile.scratch;
  float* const scores = queries + tile.heads * depth;
  const auto* keys = static_cast<const Stored*>(tile.keys);
  const auto* values = static_cast<const Stored*>(tile.values);
  widen_rows(static_cast<const Stored*>(tile.query), tile.heads, tile.head_dim, tile.scale,
             queries);
  if (depth == tile.head_dim) {
    attend_rows(tile, keys, values, depth, queries, scores);
  } else {
    float* const wide_keys = scores + tile.heads * padded(tile.tokens);
    float* const wide_values = wide_keys + tile.tokens * depth;
    widen_rows(keys, tile.tokens, tile.head_dim, 1.0f, wide_keys);
    widen_rows(values, tile.tokens, tile.head_dim, 1.0f, wide_values);
    attend_rows<float>(tile, wide_keys, wide_values, depth, queries, scores);
  }
  for (int64_t head = 0; head < tile.heads; ++head)
    for (int64_t d = 0; d < tile.head_dim; ++d)
      write_rounded(static_cast<Stored*>(tile.result) + head * tile.head_dim + d,
                    queries[head * depth + d]);
}

}  // namespace

int64_t attention_scratch(int64_t heads, int64_t tokens, int64_t head_dim) {
  const int64_t depth = padded(head_dim), widened = depth == head_dim ? 0 : 2 * tokens * depth;
  return heads * (depth + padded(tokens)) + widened;
}

void attention_tile(const AttentionTile& tile) {
  if (tile.number == Number::float32) {
    attend<float>(tile);
  } else {
    attend<uint16_t>(tile);
  }
}

}  // namespace selfcal::kernels::SELFCAL_INSTRUCTIONS
