// Rounding to codes. Compiled without contraction: what is stored is what the errors are measured
// against.
#include "stages/lanes/rounding.hpp"

namespace selfcal::lanes::SELFCAL_INSTRUCTION_SET {

void subtract_products(const float* panels, int64_t depth, int64_t columns, const float* other,
                       float* tile);
void whole_panels(const float* matrix, int64_t stride, int64_t depth, int64_t columns,
                  const float* factors, int32_t* panels, float* steps);
void whole_tile(const float* tile, int64_t depth, const float* factors, int32_t* numbers,
                float* steps);
void subtract_whole(const int32_t* panels, const float* column_steps, int64_t depth,
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

/// value^2.4 for value >= 0, to about 1e-6; zero where it would underflow.
Vector power_2_4(Vector value) {
  // log2: mantissa in [sqrt 1/2, sqrt 2), then the series of atanh.
  const Integers whole = bits(value) - 0x3f3504f3;
  const Integers exponent = whole >> 23;
  const Vector mantissa = from_bits((whole & 0x007fffff) + 0x3f3504f3);
  const Vector s = (mantissa - 1.0f) / (mantissa + 1.0f), t = s * s;
  const Vector series = (((t * (1.0f / 9) + 1.0f / 7) * t + 1.0f / 5) * t + 1.0f / 3) * t + 1.0f;
  const Vector logarithm = __builtin_convertvector(exponent, Vector) + s * series * 2.88539008f;
  // exp2: whole part into the exponent, the rest by Taylor's series.
  const Vector power = smaller(larger(logarithm * 2.4f, all(-126.0f)), all(127.0f));
  const Vector integer = round_even(power), f = (power - integer) * 0.693147181f;
  Vector result = f * (1.0f / 5040) + 1.0f / 720;
  result = result * f + 1.0f / 120;
  result = result * f + 1.0f / 24;
  result = result * f + 1.0f / 6;
  result = result * f + 0.5f;
  result = result * f + 1.0f;
  result = result * f + 1.0f;
  const Integers scaled = bits(result) + (__builtin_convertvector(integer, Integers) << 23);
  return power > all(-126.0f) ? from_bits(scaled) : all(0.0f);
}

struct Range {
  Vector low, high;
};

Range range_of(const Grid& grid, const float* tile, int64_t columns) {
  Vector low{}, high{};
  for (int64_t j = 0; j < columns; ++j) {
    low = smaller(low, load(tile + j * rows));
    high = larger(high, load(tile + j * rows));
  }
  if (grid.symmetric) {
    // A row without negative weights keeps low = 0, as in the published code.
    high = larger(high, -low);
    low = low < all(0.0f) ? -high : low;
  }
  const Integers empty = (low == all(0.0f)) & (high == all(0.0f));
  return {empty ? all(-1.0f) : low, empty ? all(1.0f) : high};
}

Vector scale_of(const Grid& grid, Range range) {
  const Vector scale = round_to(grid.scale, (range.high - range.low) / grid.largest_code);
  // Weights too small for the format still need a step.
  const float smallest = grid.scale == Format::float16    ? 0x1p-24f
                         : grid.scale == Format::bfloat16 ? 0x1p-133f
                                                          : 0x1p-149f;
  return larger(scale, all(smallest));
}

Vector zero_of(const Grid& grid, Range range, Vector scale) {
  if (grid.symmetric) return all((grid.largest_code + 1) / 2);
  return smaller(round_even(smaller(-range.low / scale, all(1024.0f))), all(grid.largest_code));
}

Vector distortion(const Grid& grid, const float* tile, int64_t columns, Vector scale, Vector zero) {
  Vector total{};
  for (int64_t first = 0; first < columns; first += 32) {
    Vector sum{};
    for (int64_t j = first; j < first + 32 && j < columns; ++j) {
      const Vector weight = load(tile + j * rows);
      sum += power_2_4(absolute((code_of(grid, weight, scale, zero) - zero) * scale - weight));
    }
    total += sum;
  }
  return total;
}

void find_scale_of_vector(const Grid& grid, const float* tile, int64_t columns, float* scale,
                          float* zero) {
  const Range range = range_of(grid, tile, columns);
  Vector best_scale = scale_of(grid, range), best_zero = zero_of(grid, range, best_scale);
  if (grid.search) {
    constexpr int steps = 100, tried = 80;
    Vector best = all(__builtin_inff());
    for (int i = 0; i < tried; ++i) {
      const float share = float(1 - double(i) / steps);
      const Range shrunk{range.low * share, range.high * share};
      const Vector a_scale = scale_of(grid, shrunk), a_zero = zero_of(grid, shrunk, a_scale);
      const Vector error = distortion(grid, tile, columns, a_scale, a_zero);
      const Integers better = error < best;
      best = better ? error : best;
      best_scale = better ? a_scale : best_scale;
      best_zero = better ? a_zero : best_zero;
    }
  }
  store(scale, best_scale);
  store(zero, best_zero);
}

void find_scale(const Grid& grid, const float* tile, int64_t columns, float* scale, float* zero) {
  for (int64_t row = 0; row < rows; row += width) {
    find_scale_of_vector(grid, tile + row, columns, scale + row, zero + row);
  }
}

void round_columns(const Grid& grid, float* tile, int64_t columns, const int32_t* group,
                   const float* scale, const float* zero, float* codes) {
  for (int64_t j = 0; j < columns; ++j) {
    const int64_t parameters = group[j] * rows;
    for (int64_t row = 0; row < rows; row += width) {
      float* at = tile + j * rows + row;
      store(at, round_vector(grid, load(at), scale + parameters + row, zero + parameters + row,
                             codes + j * rows + row));
    }
  }
}

void errors_of_scaled(const Grid& grid, const float* tile, int64_t columns, const float* factors,
                      float* errors) {
  for (int64_t row = 0; row < rows; row += width) {
    for (int64_t j = 0; j < columns; ++j)
      store(errors + j * rows + row, load(tile + j * rows + row) * all(factors[j]));
    float scale[width], zero[width];
    find_scale_of_vector(grid, errors + row, columns, scale, zero);
    const Vector step = load(scale), origin = load(zero);
    for (int64_t j = 0; j < columns; ++j) {
      float* at = errors + j * rows + row;
      const Vector rounded = weight_of(grid, code_of(grid, load(at), step, origin), step, origin);
      store(at, rounded / all(factors[j]) - load(tile + j * rows + row));
    }
  }
}

void errors_of_cut(const Grid& grid, const float* tile, int64_t columns, const float* limits,
                   float* errors) {
  for (int64_t row = 0; row < rows; row += width) {
    const Vector limit = load(limits + row);
    for (int64_t j = 0; j < columns; ++j)
      store(errors + j * rows + row, larger(smaller(load(tile + j * rows + row), limit), -limit));
    float scale[width], zero[width];
    find_scale_of_vector(grid, errors + row, columns, scale, zero);
    const Vector step = load(scale), origin = load(zero);
    for (int64_t j = 0; j < columns; ++j) {
      float* at = errors + j * rows + row;
      const Vector rounded = weight_of(grid, code_of(grid, load(at), step, origin), step, origin);
      store(at, rounded - load(tile + j * rows + row));
    }
  }
}

void round_with_feedback(const Grid& grid, float* tile, int64_t columns, const float* upper,
                         int64_t stride, const int32_t* group, const float* scale,
                         const float* zero, float* codes, float* errors) {
  constexpr int vectors = rows / width;
  for (int64_t j = 0; j < columns; ++j) {
    const int64_t parameters = group[j] * rows;
    const float* weights_of_errors = upper + j * stride;
    Vector error[vectors];
    for (int v = 0; v < vectors; ++v) {
      const int64_t row = v * width;
      float* at = tile + j * rows + row;
      const Vector weight = load(at);
      const Vector rounded = round_vector(grid, weight, scale + parameters + row,
                                          zero + parameters + row, codes + j * rows + row);
      error[v] = (weight - rounded) / weights_of_errors[j];
      store(at, rounded);
      store(errors + j * rows + row, error[v]);
    }
    for (int64_t i = j + 1; i < columns; ++i) {
      const Vector factor = all(weights_of_errors[i]);
      for (int v = 0; v < vectors; ++v) {
        float* at = tile + i * rows + v * width;
        store(at, load(at) - error[v] * factor);
      }
    }
  }
}

#define SELFCAL_TEXT_OF(name) #name
#define SELFCAL_TEXT(name) SELFCAL_TEXT_OF(name)

}  // namespace

extern const Kernels kernels{SELFCAL_TEXT(SELFCAL_INSTRUCTION_SET),
                             panel,
                             pack_panels,
                             subtract_products,
                             whole_panels,
                             whole_tile,
                             subtract_whole,
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
