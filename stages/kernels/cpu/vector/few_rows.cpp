// y = x W^T for few rows of x, as an outer product: x is transposed so that a vector holds one
// input column of many rows, and each weight, widened to float32 in a small panel, is broadcast
// against it. While one panel is multiplied the next is widened and the one after is prefetched.
// Every sum runs along the input in an order that depends on the number of columns only; weights
// are read once, as they lie.
#include "stages/kernels/cpu/vector/kernels.hpp"
#include "stages/kernels/cpu/vector/vector.hpp"

namespace selfcal::kernels::SELFCAL_INSTRUCTIONS {
namespace {

constexpr int64_t longest_panel = 256;               // input columns
constexpr int accumulators = width == 16 ? 24 : 12;  // of 32 or 16 registers
constexpr int most_vectors = 4;
constexpr int cache_line = 64;
constexpr int second_level = 2;  // of the caches: panels leave no room in the first

/// Some rows of the weight matrix and some of their columns, as float32; zeros fill the last
/// vector.
template <int rows>
using Panel = float[rows][longest_panel + width];  // so that rows do not share the cache's banks

/// Where a panel's numbers come from.
template <int rows, class Stored>
struct Source {
  const Stored* row[rows];
  int64_t count;  // columns
};

/// The sums of one tile, [weight row][row of x]; lanes of one pass.
using TileSums = float[weight_tile][most_vectors * width];

constexpr int64_t round_up(int64_t count, int64_t step) { return (count + step - 1) / step * step; }

/// Columns [first, source.count) of a panel.
template <int rows, class Stored>
void fill(const Source<rows, Stored>& source, int64_t first, Panel<rows>& panel) {
  for (int row = 0; row < rows; ++row) {
    int64_t k = first;
    for (; k + width <= source.count; k += width)
      write(panel[row] + k, read_widened(source.row[row] + k));
    for (; k < round_up(source.count, width); ++k)
      panel[row][k] = k < source.count ? widen(source.row[row][k]) : 0.0f;
  }
}

/// total += panel[..][k + j] * x[j] for j < width; widens the same columns of `next` on the way if
/// `widens`.
template <bool widens, int rows, int vectors, class Stored>
SELFCAL_INLINE void multiply_columns(const Panel<rows>& panel, int64_t k, const float* x,
                                     int64_t lanes, const Source<rows, Stored>& next,
                                     Panel<rows>& next_panel, Floats (&total)[rows][vectors]) {
#pragma GCC unroll 16
  for (int j = 0; j < width; ++j, x += lanes) {
    Floats column[vectors];
#pragma GCC unroll 4
    for (int v = 0; v < vectors; ++v) column[v] = read<Floats>(x + v * width);
#pragma GCC unroll 24
    for (int r = 0; r < rows; ++r) {
      const Floats weight = all(panel[r][k + j]);
#pragma GCC unroll 4
      for (int v = 0; v < vectors; ++v) total[r][v] += weight * column[v];
    }
    if (widens) {
#pragma GCC unroll 2
      for (int r = j; r < rows; r += width) write(next_panel[r] + k, read_widened(next.row[r] + k));
    }
    asm volatile("" ::
                     : "memory");  // loads of the next column stay below, or the sums are pushed
                                   // out of registers
  }
}

/// sums[row][...] += panel[row][k] * x[k][...] over k < count (whole vectors); meanwhile `next` is
/// widened into its panel and `later` is fetched into the cache.
template <int rows, int vectors, class Stored>
void multiply(const Panel<rows>& panel, const float* x, int64_t lanes, int64_t count,
              const Source<rows, Stored>& next, Panel<rows>& next_panel,
              const Source<rows, Stored>& later, float (*sums)[most_vectors * width]) {
  Floats total[rows][vectors] = {};
  const int64_t both = next.count < count ? next.count / width * width : count;
  int64_t k = 0;
  for (; k < both; k += width) {
    if (k % (cache_line / sizeof(Stored)) == 0) {
#pragma GCC unroll 24
      for (int r = 0; r < rows; ++r) __builtin_prefetch(later.row[r] + k, 0, second_level);
    }
    multiply_columns<true>(panel, k, x + k * lanes, lanes, next, next_panel, total);
  }
  for (; k < count; k += width)
    multiply_columns<false>(panel, k, x + k * lanes, lanes, next, next_panel, total);
#pragma GCC unroll 24
  for (int r = 0; r < rows; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < vectors; ++v) {
      float* sum = sums[r] + v * width;
      write(sum, read<Floats>(sum) + total[r][v]);
    }
  }
  if (both < next.count) fill(next, both, next_panel);
}

/// All sums of weight rows [first, first + weight_tile) against `vectors` vectors of rows of x. The
/// start of the rows from `following` on is fetched into the cache.
template <int vectors, class Stored>
void sum_tile(const float* x, int64_t lanes, const Stored* weight, const Matrix& shape,
              int64_t first, int64_t following, TileSums& sums) {
  constexpr int rows = accumulators / vectors;
  static_assert(weight_tile % rows == 0);
  // Panels along the input, about equally long.
  const int64_t panels = round_up(shape.columns, longest_panel) / longest_panel;
  const int64_t length =
      round_up((shape.columns + panels - 1) / panels, cache_line / sizeof(Stored));
  const int64_t end = first + weight_tile < shape.count ? first + weight_tile : shape.count;
  const int64_t steps = round_up(end - first, rows) / rows * panels;

  // Step s is panel s % panels of group s / panels of rows. Steps past the end are those of the
  // following rows; rows past the matrix repeat its last one and are not used.
  const auto source_of = [&](int64_t step) {
    const int64_t group =
        step < steps ? first + step / panels * rows : following + (step - steps) / panels * rows;
    const int64_t k = step % panels * length;
    Source<rows, Stored> source;
    source.count = shape.columns - k < length ? shape.columns - k : length;
    for (int r = 0; r < rows; ++r) {
      const int64_t row = group + r;
      source.row[r] = weight + (row < shape.count ? row : shape.count - 1) * shape.columns + k;
    }
    return source;
  };

  std::memset(&sums, 0, sizeof(sums));
  alignas(cache_line) Panel<rows> panel[2];
  auto next = source_of(1), later = source_of(2);
  auto count = source_of(0).count;
  fill(source_of(0), 0, panel[0]);
  for (int64_t step = 0; step < steps; ++step) {
    multiply<rows, vectors>(panel[step % 2], x + step % panels * length * lanes, lanes,
                            round_up(count, width), next, panel[(step + 1) % 2], later,
                            sums + step / panels * rows);
    count = next.count;
    next = later;
    later = source_of(step + 3);
  }
}

/// `width` numbers from `data[first]` on; zeros from `count` on and where there is no data.
SELFCAL_INLINE Floats read_padded(const Matrix& data, int64_t first, int64_t count) {
  float numbers[width] = {};
  if (data.data == nullptr) return read<Floats>(numbers);
  with_type(data.data, data.number, [&](const auto* from) {
    for (int i = 0; i < width && i < count; ++i) numbers[i] = widen(from[first + i]);
  });
  return read<Floats>(numbers);
}

/// Adds the bias, transposes and rounds the sums of `rows` rows of x; `stride` is the length of a
/// row of the result.
template <class Stored>
void store_tile(const TileSums& sums, int64_t rows, const Matrix& bias, int64_t first,
                int64_t count, int64_t stride, Stored* result) {
  for (int64_t column = 0; column < count; column += width) {
    const Floats shift = read_padded(bias, first + column, count - column);
    for (int64_t row = 0; row < rows; row += width) {
      Floats square[width];
#pragma GCC unroll 16
      for (int c = 0; c < width; ++c) square[c] = read<Floats>(sums[column + c] + row);
      transpose_square(square);
#pragma GCC unroll 16
      for (int r = 0; r < width; ++r) {
        if (row + r >= rows) break;
        Stored* to = result + (row + r) * stride + first + column;
        const Floats numbers = square[r] + shift;
        if (column + width <= count) {
          write_rounded(to, numbers);
        } else {
          for (int64_t c = 0; c < count - column; ++c) write_rounded(to + c, numbers[c]);
        }
      }
    }
  }
}

template <class Stored>
void transpose_rows(const Stored* x, const Matrix& shape, int64_t lanes, int64_t first,
                    int64_t count, float* result) {
  const int64_t end = first + count;
  for (int64_t row = 0; row < lanes; row += width) {
    const int64_t valid = shape.count - row < width ? shape.count - row : width;
    const Stored* from = x + row * shape.columns;
    int64_t k = first;
    for (; k + width <= end; k += width) {
      Floats square[width] = {};
      for (int64_t r = 0; r < valid; ++r) square[r] = read_widened(from + r * shape.columns + k);
      transpose_square(square);
      for (int i = 0; i < width; ++i) write(result + (k + i) * lanes + row, square[i]);
    }
    for (; k < round_up(end, width); ++k) {
      for (int64_t r = 0; r < width; ++r)
        result[k * lanes + row + r] =
            r < valid && k < end ? widen(from[r * shape.columns + k]) : 0.0f;
    }
  }
}

}  // namespace

void transpose(const Matrix& x, int64_t lanes, int64_t first, int64_t count, float* result) {
  with_type(x.data, x.number,
            [&](const auto* data) { transpose_rows(data, x, lanes, first, count, result); });
}

void few_rows_tile(const float* transposed, int64_t rows, int64_t lanes, const Matrix& weight,
                   const Matrix& bias, int64_t tile, int64_t following, void* result,
                   Number result_number) {
  const int64_t first = tile * weight_tile;
  const int64_t count = weight.count - first < weight_tile ? weight.count - first : weight_tile;
  alignas(64) TileSums sums;
  for (int64_t lane = 0; lane < lanes; lane += most_vectors * width) {
    const int64_t vectors = (lanes - lane) / width;
    with_type(weight.data, weight.number, [&](const auto* data) {
      const float* x = transposed + lane;
      if (vectors == 1) {
        sum_tile<1>(x, lanes, data, weight, first, following * weight_tile, sums);
      } else if (vectors == 2) {
        sum_tile<2>(x, lanes, data, weight, first, following * weight_tile, sums);
      } else if (vectors == 3) {
        sum_tile<3>(x, lanes, data, weight, first, following * weight_tile, sums);
      } else {
        sum_tile<4>(x, lanes, data, weight, first, following * weight_tile, sums);
      }
    });
    const int64_t valid = rows - lane < most_vectors * width ? rows - lane : most_vectors * width;
    with_type(result, result_number, [&](auto* data) {
      store_tile(sums, valid, bias, first, count, weight.count, data + lane * weight.count);
    });
  }
}

}  // namespace selfcal::kernels::SELFCAL_INSTRUCTIONS
