// The inner loops of decoding, compiled for several instruction sets: plain pointers in, plain
// pointers out.
#pragma once
#include <cstdint>

#include "stages/kernels/activation.hpp"

namespace selfcal::kernels {

/// How stored numbers lie in memory; arithmetic is float32.
enum class Number { float32, bfloat16 };

/// A matrix in memory, rows of `columns` numbers one after the other.
struct Matrix {
  const void* data;
  Number number;
  int64_t count;
  int64_t columns;
};

/// One sequence and one key-value head of decoding: `heads` queries over `tokens` cache entries.
struct AttentionTile {
  const void* query;  // [heads, head_dim]
  const void* keys;   // [tokens, head_dim]
  const void* values;
  void* result;  // [heads, head_dim]
  Number number;
  int64_t heads, tokens, head_dim;
  float scale;
  float soft_cap;  // 0: none
  float* scratch;  // attention_scratch(heads, tokens, head_dim) floats
};

/// Matrix of a weight matrix that are one unit of work.
inline constexpr int64_t weight_tile = 48;
/// Sums of exponentials are kept for blocks of this many entries.
inline constexpr int64_t exponential_block = 256;

/// Numbers of 16 bits that a row of n whole numbers takes.
constexpr int64_t whole_row(int64_t n, int64_t width) {
  return (n + 2 * width - 1) / (2 * width) * (2 * width);
}

struct VectorKernels {
  const char* name;  // part of the numeric kind
  int64_t width;     // float32 numbers a vector

  /// Columns k in [first, first + count) of x to float32, transposed: result[k * lanes + row], with
  /// zeros for rows from x.count to lanes and for columns from first + count to the next multiple
  /// of `width`. `lanes` is a multiple of it.
  void (*transpose)(const Matrix& x, int64_t lanes, int64_t first, int64_t count, float* result);

  /// Output columns [tile * weight_tile, ...) of x W^T + bias for all rows of x; `following` is the
  /// tile that this thread is likely to compute next. `transposed`: all
  /// columns of x as `transpose` leaves them; bias may be null; result: [x rows, weight.count]. The
  /// order of a sum depends on the number of columns only.
  void (*few_rows_tile)(const float* transposed, int64_t rows, int64_t lanes, const Matrix& weight,
                        const Matrix& bias, int64_t tile, int64_t following, void* result,
                        Number result_number);

  int64_t (*attention_scratch)(int64_t heads, int64_t tokens, int64_t head_dim);
  void (*attention_tile)(const AttentionTile& tile);

  /// The largest entry; NaN if there is one.
  float (*maximum)(const float* values, int64_t count);
  /// result[i] = exp((values[i] - shift) * scale), 0 below exp(-86); block_sums[b] is the float64
  /// sum of block b.
  void (*exponentials)(const float* values, int64_t count, float shift, float scale, float* result,
                       double* block_sums);

  // Matrix products of many rows. A panel is 2 * width columns of the second operand, [depth][2 *
  // width] float32; `transpose` makes one of as many weight rows.

  /// Columns [first, first + count) of all rows of x to float32, in panels one after the other,
  /// zeros past the last column.
  void (*split)(const Matrix& x, int64_t first, int64_t count, float* panels);
  /// c[rows][2 * width] = a[rows][depth] panel, added to what c holds if `accumulate`. Each entry
  /// is one running sum along the depth, whatever the number of rows.
  void (*multiply_panel)(int64_t rows, int64_t depth, const float* a, int64_t a_stride,
                         const float* panel, float* c, int64_t c_stride, bool accumulate);

  // The same on whole numbers of 16 bits. A row of n of them takes whole_row(n, width), zeros after
  // the last; a panel is 2 * width columns, [pairs][2 * width] of two numbers that follow one
  // another along the sum, the first in the low half.

  /// The n numbers of a row in units of a step, which is returned: their norm is below 2^15.5, each
  /// fits in 16 bits. Rows below 1e-30 become zeros of step 0; one that is not finite has step NaN.
  float (*to_whole)(const void* x, Number number, int64_t n, int16_t* to);
  /// Rows whose sums fill the registers.
  int64_t whole_rows;
  /// `count` rows, at most whole_rows, side by side: [pairs][whole_rows], zeros for the others.
  /// `pairs`: a multiple of width.
  void (*pack_whole_rows)(const int16_t* rows, int64_t stride, int64_t count, int64_t pairs,
                          int32_t* packed);
  /// The same as columns of a panel, at most 2 * width.
  void (*pack_whole_panel)(const int16_t* rows, int64_t stride, int64_t count, int64_t pairs,
                           int32_t* panel);
  /// c[rows][2 * width] = a panel, exact; added to what c holds if `accumulate`. a: [pairs][a_rows]
  /// packed rows or a panel, of which the first `rows` are multiplied.
  void (*multiply_whole)(int64_t rows, int64_t pairs, const int32_t* a, int64_t a_rows,
                         const int32_t* panel, int32_t* c, int64_t c_stride, bool accumulate);
  /// y = sums * step * steps + bias; bias may be null. sums and steps are read in whole vectors.
  void (*narrow_whole)(const int32_t* sums, float step, const float* steps, const void* bias,
                       Number bias_number, int64_t n, void* y, Number number);
  /// Of columns [first, first + count) of x, over its rows in order, in float64.
  void (*sum_squares)(const Matrix& x, int64_t first, int64_t count, double* sums);
  /// The same of |x|, each sum a running one.
  void (*sum_sizes)(const Matrix& x, int64_t first, int64_t count, double* sums);
  /// Columns [first, first + count) of x, count at most 2 * width, times their factors, to the
  /// nearest whole number, as a panel whose sum runs along the rows of x. Zeros past the last
  /// column and up to whole_row(x.count, width) rows. False where a number does not fit in 16 bits.
  bool (*columns_to_whole)(const Matrix& x, int64_t first, int64_t count, const float* factors,
                           int32_t* panel);

  // Loops of n numbers.

  /// y = factor * x.
  void (*widen)(const void* x, Number number, int64_t n, float factor, float* y);
  /// y = factor * x + bias; bias may be null.
  void (*narrow)(const float* x, const void* bias, Number bias_number, int64_t n, float factor,
                 void* y, Number number);
  /// y = x + bias of `rows` rows of n numbers, strides apart.
  void (*narrow_rows)(int64_t rows, int64_t n, const float* x, int64_t x_stride, const void* bias,
                      Number bias_number, void* y, int64_t y_stride, Number number);
  /// x = high + low to some 16 bits, both the nearest bfloat16.
  void (*split_in_two)(const float* x, int64_t n, uint16_t* high, uint16_t* low);
  void (*add)(const void* a, const void* b, Number number, int64_t n, void* y);
  /// y = sums / divisor * (units * factor), in float64 but for y.
  void (*divide_sums)(const int64_t* sums, int64_t n, double divisor, const double* units,
                      double factor, float* y);
  /// y = activation(x) * factor; factor may be null.
  void (*activate)(Activation activation, const void* x, const void* factor, Number number,
                   int64_t n, void* y);
  /// x = cap * tanh(x / cap), in place.
  void (*soft_cap)(float* x, int64_t n, float cap);
  /// y = x / sqrt(mean(x^2) + epsilon) * (offset + weight).
  void (*rms_norm_row)(const void* x, const void* weight, Number number, int64_t n, float epsilon,
                       float offset, void* y);
  /// y = (x - mean) / sqrt(variance + epsilon) * weight + bias.
  void (*layer_norm_row)(const void* x, const void* weight, const void* bias, Number number,
                         int64_t n, float epsilon, void* y);
  /// Turns the pairs (x[i], x[half + i]) in place by the angle whose cosine and sine are given.
  void (*rotate_head)(void* x, Number number, const float* cosine, const float* sine, int64_t half);
  /// scores[i] = exp(scores[i] - largest) for i < visible, zero up to `count`; `total` is their
  /// sum. Returns `largest`, at least `floor`.
  float (*weigh)(float* scores, int64_t visible, int64_t count, float floor, float* total);
  /// Whether no number has all bits of `exponent` set: how IEEE numbers say NaN or infinite.
  bool (*all_finite16)(const uint16_t* x, int64_t n, uint16_t exponent);
  bool (*all_finite32)(const uint32_t* x, int64_t n, uint32_t exponent);
};

/// The best set of this processor.
const VectorKernels& vector_kernels();
/// All that this processor can run, best first: set number `rank`, null past the last (for tests).
const VectorKernels* supported_kernels(int rank);

}  // namespace selfcal::kernels
