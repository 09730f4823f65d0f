// The inner loops of decoding, compiled for several instruction sets: plain pointers in, plain
// pointers out.
#pragma once
#include <cstdint>

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
  float* scratch;  // attention_scratch(heads, tokens, head_dim) floats
};

/// Matrix of a weight matrix that are one unit of work.
inline constexpr int64_t weight_tile = 48;
/// Sums of exponentials are kept for blocks of this many entries.
inline constexpr int64_t exponential_block = 256;

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
};

/// The best set of this processor.
const VectorKernels& vector_kernels();
/// All that this processor can run, best first: set number `rank`, null past the last (for tests).
const VectorKernels* supported_kernels(int rank);

}  // namespace selfcal::kernels
