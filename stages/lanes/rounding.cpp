// Rounding to codes. Compiled without contraction: what is stored is what the errors are measured
// against.
#include "stages/lanes/rounding.hpp"

namespace selfcal::lanes::SELFCAL_INSTRUCTION_SET {

void subtract_products(const float* panels, int64_t depth, int64_t columns, const float* other,
                       float* tile);
void subtract_products_double(const double* panels, int64_t depth, int64_t columns,
                              const double* other, double* tile);
void short_panels(const float* matrix, int64_t stride, int64_t depth, int64_t columns,
                  const float* factors, int32_t* panels, float* steps);
void short_tile(const float* tile, int64_t depth, const float* factors, int32_t* numbers,
                float* steps);
void subtract_short(const int32_t* panels, const float* column_steps, int64_t depth,
                    int64_t columns, const int32_t* numbers, const float* row_steps, float* tile);
void add_dot_products(const float* a, const float* b, int64_t columns, double* sums);
void pack_panels(const float* matrix, int64_t stride, int64_t depth, int64_t columns,
                 float* panels);
void score_columns(const float* tile, int64_t columns, const float* upper, int64_t stride,
                   float* scores);
void keep_best(const float* scores, int64_t columns, const Pattern& pattern, float* kept);
void prune_with_feedback(const Grid& grid, const Pattern& pattern, float* tile, int64_t columns,
                         const float* upper, int64_t stride, const int32_t* group,
                         const float* scale, const float* zero, float* kept, float* codes,
                         float* errors);

namespace {

void find_scale(const Grid& grid, const float* tile, int64_t columns, float* scale, float* zero) {
  for (int64_t row = 0; row < rows; row += width) {
    const auto found = scale_and_zero<Vector>(grid, columns_of(tile + row), 0, columns);
    store(scale + row, found.scale);
    store(zero + row, found.zero);
  }
}

void round_columns(const Grid& grid, float* tile, int64_t columns, const int32_t* group,
                   const float* scale, const float* zero, float* codes) {
  TileRows<false, true> tile_rows{tile, codes, nullptr, nullptr, scale, zero};
  for (int64_t j = 0; j < columns; ++j)
    for (int part = 0; part < tile_rows.parts; ++part)
      tile_rows.set_weight(j, part, settle(grid, tile_rows, j, group[j], part));
}

/// errors[j] = restored(j, the rounded changed(j)) - weight j, of one vector of rows.
template <class Changed, class Restored>
void errors_of(const Grid& grid, const float* tile, int64_t columns, float* errors,
               const Changed& changed, const Restored& restored) {
  const auto weight = columns_of(tile), wanted = columns_of(errors);
  for (int64_t j = 0; j < columns; ++j) store(errors + j * rows, changed(j, weight(j)));
  const auto found = scale_and_zero<Vector>(grid, wanted, 0, columns);
  const ScaleAndZero<Vector> parameters =
      found;  // (one that no store can reach stays in registers)
  for (int64_t j = 0; j < columns; ++j) {
    const Vector code = code_of(grid, wanted(j), parameters);
    store(errors + j * rows, restored(j, weight_of(grid, code, parameters)) - weight(j));
  }
}

void errors_of_scaled(const Grid& grid, const float* tile, int64_t columns, const float* factors,
                      float* errors) {
  const auto scaled = [&](int64_t j, Vector weight) { return weight * factors[j]; };
  const auto restored = [&](int64_t j, Vector rounded) { return rounded / factors[j]; };
  for (int64_t row = 0; row < rows; row += width)
    errors_of(grid, tile + row, columns, errors + row, scaled, restored);
}

void errors_of_cut(const Grid& grid, const float* tile, int64_t columns, const float* limits,
                   float* errors) {
  const auto restored = [](int64_t, Vector rounded) { return rounded; };
  for (int64_t row = 0; row < rows; row += width) {
    const Vector limit = load(limits + row);
    const auto cut = [&](int64_t, Vector weight) { return larger(smaller(weight, limit), -limit); };
    errors_of(grid, tile + row, columns, errors + row, cut, restored);
  }
}

void round_with_feedback(const Grid& grid, float* tile, int64_t columns, const float* upper,
                         int64_t stride, const int32_t* group, const float* scale,
                         const float* zero, float* codes, float* errors) {
  TileRows<false, true> tile_rows{tile, codes, nullptr, errors, scale, zero};
  solve_step(grid, {}, group, tile_rows, 0, columns, upper, stride);
}

#define SELFCAL_TEXT_OF(name) #name
#define SELFCAL_TEXT(name) SELFCAL_TEXT_OF(name)

}  // namespace

extern const Kernels kernels{SELFCAL_TEXT(SELFCAL_INSTRUCTION_SET),
                             panel,
                             pack_panels,
                             subtract_products,
                             subtract_products_double,
                             panel,
                             2,
                             1,
                             short_panels,
                             short_tile,
                             subtract_short,
                             add_dot_products,
                             find_scale,
                             round_columns,
                             errors_of_scaled,
                             errors_of_cut,
                             round_with_feedback,
                             score_columns,
                             keep_best,
                             prune_with_feedback};

}  // namespace selfcal::lanes::SELFCAL_INSTRUCTION_SET
