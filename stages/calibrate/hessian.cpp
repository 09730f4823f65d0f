#include "stages/calibrate/hessian.hpp"

#include <ATen/ATen.h>

#include <bit>
#include <cmath>

#include "base/error.hpp"
#include "stages/calibrate/whole_products.hpp"
#include "stages/kernels/cpu/matrix.hpp"

namespace selfcal {
namespace {

constexpr int64_t observed_step = 64, most_observed = 1024;  // columns of a task of observe()
constexpr int entry_bits = 45;            // of a leaf's largest entry, as an integer
constexpr int32_t empty_column = -160;    // below the exponent of any float32 that is not zero
constexpr int32_t largest_exponent = 63;  // products of larger columns could overflow float32

void check_leaf(const at::Tensor& x, int64_t columns) {
  if (x.dim() != 2 || x.size(1) != columns || !x.is_contiguous() ||
      (x.scalar_type() != at::kFloat && x.scalar_type() != at::kBFloat16)) {
    fail(ExitCode::internal,
         "statistics: a leaf is {} {}, expected contiguous [tokens, {}] float32 or bfloat16",
         toString(x.scalar_type()), fmt::join(x.sizes(), "x"), columns);
  }
}

/// The smallest h with sqrt(sum) <= 2^h.
int32_t norm_exponent(double sum) {
  if (!std::isfinite(sum)) fail(ExitCode::data, "activation not finite");
  if (sum == 0) return empty_column;
  int exponent = 0;
  std::frexp(sum, &exponent);
  const int32_t half = (exponent + 1) >> 1;  // rounded up; sum < 2^exponent
  if (half > largest_exponent) {
    fail(ExitCode::data,
         "activations too large: the squares of a column sum to {:.3g}, float32 products overflow",
         sum);
  }
  return half;
}

/// Rounds to the nearest integer, ties to even; |value| < 2^51. (Vectorises where a conversion
/// would not.)
int64_t round_to_integer(double value) {
  constexpr double magic = 0x1.8p52;
  return std::bit_cast<int64_t>(value + magic) - std::bit_cast<int64_t>(magic);
}

/// Of entry (32 strip, 32 strip) in the sums.
int64_t offset_of(int64_t strip, int64_t columns) {
  return lanes::rows * (strip * columns - lanes::rows * strip * (strip - 1) / 2);
}

/// Of all sums of so many columns.
int64_t sums_of(int64_t columns) {
  const int64_t last = strips_of(columns) - 1;
  return offset_of(last, columns) + (columns - last * lanes::rows) * lanes::rows;
}

/// sums[r] += products[r] * row_scale[r] * column_scale, rounded.
void add_as_integers(const float* products, const double* row_scale, double column_scale,
                     int64_t* sums) {
  for (int64_t r = 0; r < lanes::rows; ++r) {
    sums[r] += round_to_integer(double(products[r]) * row_scale[r] * column_scale);
  }
}

/// A tile of H: of columns [column, column + columns) the rows of a strip, [columns][lanes::rows].
class HessianTile {
 public:
  HessianTile(int64_t row, int64_t rows, int64_t column, int64_t columns)
      : row_(row), rows_(rows), column_(column), columns_(columns) {}

  /// From the sums of its first column on.
  void fill(const int64_t* sums, double tokens, const double* unit, const double* scale) {
    for (int64_t j = 0; j < columns_; ++j, sums += lanes::rows)
      kernels::vector_kernels().divide_sums(sums, lanes::rows, tokens, unit + row_,
                                            scale[column_ + j], entries_[j]);
  }

  /// With its mirror image, into H [n, n].
  void write(float* h, int64_t n) {
    if (row_ == column_) {
      for (int64_t j = 0; j < columns_; ++j)
        for (int64_t r = j + 1; r < rows_; ++r) entries_[j][r] = entries_[r][j];
    } else {
      float mirrored[lanes::rows][lanes::rows];
      kernels::vector_kernels().transpose(
          {entries_[0], kernels::Number::float32, columns_, lanes::rows}, lanes::rows, 0,
          lanes::rows, mirrored[0]);
      for (int64_t r = 0; r < rows_; ++r)
        std::copy_n(mirrored[r], columns_, h + (row_ + r) * n + column_);
    }
    for (int64_t j = 0; j < columns_; ++j)
      std::copy_n(entries_[j], rows_, h + (column_ + j) * n + row_);
  }

 private:
  const int64_t row_, rows_, column_, columns_;
  float entries_[lanes::rows][lanes::rows];
};

}  // namespace

HessianAccumulator::HessianAccumulator(int64_t columns, kernels::Context context)
    : columns_(columns), context_(context), exponents_(columns, empty_column) {
  if (context.device.uses_library())
    on_device_.emplace(columns, context.device.memory);
  else
    make_sums();
}

void HessianAccumulator::make_sums() {
  constexpr int64_t zeroed_at_once = 1 << 18;
  sums_ = at::empty({sums_of(columns_)}, at::kLong);
  auto* sums = sums_.mutable_data_ptr<int64_t>();
  kernels::for_ranges(context_, sums_.numel(), zeroed_at_once,
                      [&](int64_t first, int64_t count) { std::fill_n(sums + first, count, 0); });
}

int64_t* HessianAccumulator::sums_of_strip(int64_t strip) {
  return sums_.mutable_data_ptr<int64_t>() + offset_of(strip, columns_);
}

void HessianAccumulator::observe(const at::Tensor& x) {
  check_leaf(x, columns_);
  if (context_.device.uses_library()) {
    const std::vector<double> squares = LibrarySums::squares_of_columns(x);
    for (int64_t i = 0; i < columns_; ++i)
      exponents_[i] = std::max(exponents_[i], norm_exponent(squares[i]));
    return;
  }
  const kernels::Matrix leaf = kernels::matrix_of(x);
  // Long runs of a row are read faster than short ones; a column's sum does not depend on them.
  const int64_t threads = context_.threads ? context_.threads->size() : 1,
                of_a_thread =
                    kernels::ceil_divide(columns_, observed_step * threads) * observed_step;
  kernels::for_ranges(
      context_, columns_, std::min(of_a_thread, most_observed), [&](int64_t first, int64_t count) {
        double sums[most_observed];
        kernels::vector_kernels().sum_squares(leaf, first, count, sums);
        for (int64_t i = 0; i < count; ++i)
          exponents_[first + i] = std::max(exponents_[first + i], norm_exponent(sums[i]));
      });
}

void HessianAccumulator::add(const at::Tensor& x) {
  check_leaf(x, columns_);
  if (x.size(0) == 0) return;
  if (context_.device.uses_library()) return on_device_->add(x, exponents_, entry_bits);
  const ProductCode code = product_code(x.scalar_type());
  if (code == ProductCode::whole) return add_whole(x);
  const LeafProducts products(x, code, context_);
  for_tasks(products.strips_of_a_task(), [&](int64_t first_strip, int64_t strips, int64_t column) {
    add_task(products, first_strip, strips, column);
  });
}

std::span<int64_t> HessianAccumulator::sums() {
  if (on_device_) {
    make_sums();
    for (int64_t strip = 0; strip < strips_of(columns_); ++strip)
      on_device_->read(strip * lanes::rows, lanes::rows, sums_of_strip(strip));
    on_device_.reset();
  }
  return {sums_.mutable_data_ptr<int64_t>(), static_cast<size_t>(sums_.numel())};
}

void HessianAccumulator::for_tasks(int64_t strips_of_a_task,
                                   const std::function<void(int64_t, int64_t, int64_t)>& task) {
  struct Task {
    int64_t first_strip, strips, column;
  };
  std::vector<Task> tasks;
  for (int64_t column = 0; column < columns_; column += LeafProducts::tile_columns) {
    const int64_t above = strips_of(std::min(column + LeafProducts::tile_columns, columns_));
    for (int64_t strip = 0; strip < above; strip += strips_of_a_task)
      tasks.push_back({strip, std::min(strips_of_a_task, above - strip), column});
  }
  kernels::for_tiles(context_, int64_t(tasks.size()), [&](int64_t i) {
    task(tasks[i].first_strip, tasks[i].strips, tasks[i].column);
  });
}

void HessianAccumulator::add_whole(const at::Tensor& x) {
  const WholeProducts products(x, exponents_, context_);
  for_tasks(1, [&](int64_t strip, int64_t, int64_t column) {
    const int64_t first_row = strip * lanes::rows,
                  columns = std::min(LeafProducts::tile_columns, columns_ - column);
    std::vector<int32_t> tile(columns * lanes::rows);
    products.add(first_row, column, columns, tile.data());
    const int64_t begin = std::max(column, first_row);
    const int32_t* found = tile.data() + (begin - column) * lanes::rows;
    int64_t* sums = sums_of_strip(strip) + (begin - first_row) * lanes::rows;
    for (int64_t i = 0; i < (column + columns - begin) * lanes::rows; ++i)
      sums[i] += int64_t(found[i]) << (entry_bits - 2 * whole_bits);
  });
}

void HessianAccumulator::add_task(const LeafProducts& products, int64_t first_strip, int64_t strips,
                                  int64_t column) {
  const int64_t columns = std::min(LeafProducts::tile_columns, columns_ - column);
  const ProductTile tile = products(first_strip, strips, column, columns);
  for (int64_t s = 0; s < strips; ++s) {
    const int64_t strip = first_strip + s, first_row = strip * lanes::rows;
    double row_scale[lanes::rows] = {};
    for (int64_t r = 0; r < std::min(lanes::rows, columns_ - first_row); ++r) {
      row_scale[r] = tile.sign * std::ldexp(1.0, entry_bits - exponents_[first_row + r]);
    }
    for (int64_t j = std::max(column, first_row); j < column + columns; ++j) {
      const float* products_of_j = tile.at(s, j - column);
      const double column_scale = std::ldexp(1.0, -exponents_[j]);
      const int64_t r = j - first_row;
      // One bit to spare for the rounding of the float32 product.
      if (r < lanes::rows &&
          !(products_of_j[r] * row_scale[r] * column_scale <= std::ldexp(1.0, entry_bits + 1))) {
        fail(ExitCode::internal,
             "statistics: column {} of a leaf is larger than any that was observed", j);
      }
      add_as_integers(products_of_j, row_scale, column_scale,
                      sums_of_strip(strip) + r * lanes::rows);
    }
  }
}

at::Tensor HessianAccumulator::finish(int64_t tokens) {
  if (tokens < 1) fail(ExitCode::internal, "statistics: no tokens were seen");
  if (!sums_.defined()) return on_device_->mean(exponents_, entry_bits, tokens);
  sums();
  at::Tensor hessian = at::empty({columns_, columns_}, at::kFloat);
  float* h = hessian.mutable_data_ptr<float>();
  // Powers of two, so that their products are exact; zeros for rows past the last of a strip.
  std::vector<double> scale(columns_), unit(strips_of(columns_) * lanes::rows);
  for (int64_t i = 0; i < columns_; ++i) {
    scale[i] = std::ldexp(1.0, exponents_[i]);
    unit[i] = std::ldexp(1.0, exponents_[i] - entry_bits);
  }
  kernels::for_ranges(context_, columns_, lanes::rows, [&](int64_t first, int64_t count) {
    const int64_t* sums = sums_of_strip(first / lanes::rows);
    for (int64_t column = first; column < columns_; column += lanes::rows) {
      HessianTile tile(first, count, column, std::min(lanes::rows, columns_ - column));
      tile.fill(sums + (column - first) * lanes::rows, double(tokens), unit.data(), scale.data());
      tile.write(h, columns_);
    }
  });
  return hessian.to(context_.device.memory);
}

}  // namespace selfcal
