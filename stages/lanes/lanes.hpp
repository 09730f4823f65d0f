// Vector arithmetic of the solvers. Rows of a weight matrix are independent, so 32 of them lie side
// by side in a tile [columns][32] and every vector lane works on a row of its own: a row's result
// never depends on its neighbours. One source, compiled once an instruction set and chosen at run
// time; this header must not bring inline code along.
#pragma once
#include <cstdint>

namespace selfcal::lanes {

inline constexpr int64_t rows = 32;

/// What a float32 is rounded to (to nearest, ties to even) before it is stored.
enum class Format : int { float32, bfloat16, float16 };

/// The codes of a quantiser and how their scale is found (GPTQ's published quantiser).
struct Grid {
  bool quantises = true;    // false: weights are rounded to `weight` alone
  float largest_code = 15;  // 2^bits - 1
  bool symmetric = true;
  bool search = false;  // shrink the range for the least sum |error|^2.4
  Format scale = Format::float32;
  Format weight = Format::float32;  // of (code - zero) * scale
};

/// n:m sparsity: of every run of `of` columns `zeros` are pruned; of 0: no such runs.
struct Pattern {
  static constexpr int longest = 64;
  int zeros = 0, of = 0;
  bool operator==(const Pattern&) const = default;
};

struct Kernels {
  const char* instruction_set;
  int64_t panel_columns;  // width of a packed panel

  /// Packs rows [0, depth) x columns [0, columns) of a row-major matrix into panels.
  void (*pack_panels)(const float* matrix, int64_t stride, int64_t depth, int64_t columns,
                      float* panels);

  /// tile[j] -= sum_k panel[k][j] * other[k], for j < columns, k < depth. The panels of
  /// `panel_columns` columns follow one another, each [depth][panel_columns]; the last is padded.
  /// Sums run over k in order.
  void (*subtract_products)(const float* panels, int64_t depth, int64_t columns, const float* other,
                            float* tile);
  /// The same in float64.
  void (*subtract_products_double)(const double* panels, int64_t depth, int64_t columns,
                                   const double* other, double* tile);

  // The same product of numbers of 16 bits, two to four times as fast; its error is about 1e-5 of
  // the norms' product. They are whole numbers, or bfloat16 and what it leaves in another. Factors
  // should make the entries of a column, or of a row, alike in size.

  int64_t short_columns;  // width of a packed panel of them
  int64_t short_depth;    // what a depth is padded to
  int64_t short_words;    // 32-bit words that a pair of them takes

  /// Packs rows [0, depth) x columns [0, columns) of a row-major matrix, row k times factors[k]:
  /// pairs of rows in panels of short_columns, and what a number of each column is worth.
  void (*short_panels)(const float* matrix, int64_t stride, int64_t depth, int64_t columns,
                       const float* factors, int32_t* panels, float* steps);
  /// The other operand: columns [0, depth) of a tile, column k times factors[k], as pairs, and what
  /// a number of each row is worth.
  void (*short_tile)(const float* tile, int64_t depth, const float* factors, int32_t* numbers,
                     float* steps);
  /// tile[j] -= the panels' column j times `numbers`, for j < columns.
  void (*subtract_short)(const int32_t* panels, const float* column_steps, int64_t depth,
                         int64_t columns, const int32_t* numbers, const float* row_steps,
                         float* tile);

  /// sums[row] += sum_j a[j][row] * b[j][row], in float64.
  void (*add_dot_products)(const float* a, const float* b, int64_t columns, double* sums);

  /// scale[row] and zero[row] (an integer) of the columns of a group. A range that overflows gives
  /// an infinite scale.
  void (*find_scale)(const Grid& grid, const float* tile, int64_t columns, float* scale,
                     float* zero);

  /// Rounds columns in place to the grid; column j uses scale[group[j]][row], zero[group[j]][row].
  void (*round_columns)(const Grid& grid, float* tile, int64_t columns, const int32_t* group,
                        const float* scale, const float* zero, float* codes);

  /// What rounding a group's columns to the grid of their own changes, in the units of `tile`,
  /// which stays: errors[j] = round(tile[j] * factors[j]) / factors[j] - tile[j].
  void (*errors_of_scaled)(const Grid& grid, const float* tile, int64_t columns,
                           const float* factors, float* errors);
  /// errors[j] = round(cut(tile[j])) - tile[j], where cut() keeps a row within +-limits[row].
  void (*errors_of_cut)(const Grid& grid, const float* tile, int64_t columns, const float* limits,
                        float* errors);

  /// round_columns, one column after the other: column j's error (weight - rounded) / upper[j][j]
  /// is kept in errors[j] and taken off, times upper[j][i], from the columns i > j of the run.
  /// `stride`: of upper's rows.
  void (*round_with_feedback)(const Grid& grid, float* tile, int64_t columns, const float* upper,
                              int64_t stride, const int32_t* group, const float* scale,
                              const float* zero, float* codes, float* errors);

  /// scores[j] = |weight| / upper[j][j]: the root of what pruning an entry costs (SparseGPT), since
  /// the square of a small weight is 0.
  void (*score_columns)(const float* tile, int64_t columns, const float* upper, int64_t stride,
                        float* scores);

  /// kept[j] = 0 for the `zeros` lowest scores of every run of `of` columns (of equal ones the
  /// first goes), 1 for the rest.
  void (*keep_best)(const float* scores, int64_t columns, const Pattern& pattern, float* kept);

  /// round_with_feedback with the entries pruned where kept is 0. With a pattern, `kept` is found
  /// on the way: at each run of `of` columns by their scores as the weights are then.
  void (*prune_with_feedback)(const Grid& grid, const Pattern& pattern, float* tile,
                              int64_t columns, const float* upper, int64_t stride,
                              const int32_t* group, const float* scale, const float* zero,
                              float* kept, float* codes, float* errors);
};

/// Of the widest instruction set of this CPU.
const Kernels& kernels();

/// Every set that this CPU can run, widest first (the numeric kind names the first).
/// (The processor's matrix units come first, if it has any, with the vectors of the widest.)
struct KernelList {
  const Kernels* const* first;
  int64_t count;
};
KernelList available_kernels();

}  // namespace selfcal::lanes
