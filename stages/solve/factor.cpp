#include "stages/solve/factor.hpp"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <tuple>

#include "base/error.hpp"
#include "stages/kernels/cpu/tiles.hpp"

namespace selfcal {
namespace {

constexpr double first_damping = 0.01;  // where the settings ask for none and some is needed

/// What the factorisation needs to know of a Hessian's diagonal.
struct Diagonal {
  std::vector<double> values;
  double live_mean = 1;  // of the entries that are not zero; dead ones are set to it
};

void check_hessian(const at::Tensor& hessian) {
  if (hessian.dim() != 2 || hessian.size(0) != hessian.size(1) || hessian.size(0) < 1 ||
      hessian.scalar_type() != at::kFloat || !hessian.is_contiguous()) {
    fail(ExitCode::internal, "factorise: Hessian is {} [{}], expected contiguous float32 [n, n]",
         toString(hessian.scalar_type()), fmt::join(hessian.sizes(), ", "));
  }
}

bool is_finite(const at::Tensor& matrix, const kernels::Context& context) {
  return matrix.is_cpu() ? kernels::all_finite(context, matrix)
                         : matrix.isfinite().all().item<bool>();
}

void check_squares(const at::Tensor& squares) {
  const float least = squares.min().item<float>();
  if (least < 0)
    fail(ExitCode::data, "Hessian not positive definite: {:.3g} on its diagonal", least);
}

Diagonal diagonal_of(const at::Tensor& hessian) {
  const at::Tensor entries = hessian.diagonal().to(at::kCPU).contiguous();
  check_squares(entries);
  Diagonal diagonal;
  double sum = 0;
  int64_t live = 0;
  for (int64_t i = 0; i < entries.numel(); ++i) {
    diagonal.values.push_back(entries.const_data_ptr<float>()[i]);
    sum += diagonal.values.back();
    live += diagonal.values.back() != 0;
  }
  if (live > 0) diagonal.live_mean = sum / double(live);
  return diagonal;
}

/// Runs of `run` columns, the columns of a run in order.
at::Tensor order_of(const Diagonal& diagonal, int64_t run) {
  const auto columns = int64_t(diagonal.values.size());
  if (run == 0) return at::arange(columns, at::kLong);
  std::vector<int64_t> runs(kernels::ceil_divide(columns, run));
  std::iota(runs.begin(), runs.end(), 0);
  std::vector<double> sums(runs.size());
  for (int64_t i = 0; i < columns; ++i) sums[i / run] += diagonal.values[i];
  std::ranges::stable_sort(runs, [&](int64_t a, int64_t b) { return sums[a] > sums[b]; });
  at::Tensor permutation = at::empty({columns}, at::kLong);
  auto* position = permutation.mutable_data_ptr<int64_t>();
  for (const int64_t first : runs)
    for (int64_t i = first * run; i < std::min((first + 1) * run, columns); ++i) *position++ = i;
  return permutation;
}

/// What is factorised is the Hessian times a power of four that brings its mean diagonal near 1:
/// the solves do not depend on it, and nothing overflows or underflows on the way.
double unit_of(const Diagonal& diagonal) {
  return std::ldexp(1.0, -2 * (std::ilogb(diagonal.live_mean) >> 1));
}

/// The damped Hessian in reversed order of the permutation, scaled.
template <class T>
typename Cholesky<T>::Entries damped_entries(const at::Tensor& hessian, const Diagonal& diagonal,
                                             double damping, const at::Tensor& permutation) {
  std::vector<int64_t> column(permutation.const_data_ptr<int64_t>(),
                              permutation.const_data_ptr<int64_t>() + permutation.numel());
  std::ranges::reverse(column);
  const double scale = unit_of(diagonal), added = damping * diagonal.live_mean;
  return [hessian, diagonal, scale, added, column = std::move(column)](
             int64_t row, int64_t first, int64_t count, T* into, int64_t stride) {
    const float* from = hessian.const_data_ptr<float>() + column[row] * hessian.size(1);
    for (int64_t j = 0; j < count; ++j) into[j * stride] = T(from[column[first + j]] * scale);
    if (row < first || row >= first + count) return;
    const double entry = diagonal.values[column[row]];
    into[(row - first) * stride] = T(((entry == 0 ? diagonal.live_mean : entry) + added) * scale);
  };
}

/// By our tiles; false where it is not positive definite in T.
template <class T>
bool try_tiles(const at::Tensor& hessian, const Diagonal& diagonal, double damping, Factor& factor,
               const kernels::Context& context) {
  const int64_t n = hessian.size(0);
  const Cholesky<T> cholesky(n, damped_entries<T>(hessian, diagonal, damping, factor.permutation),
                             context);
  if (!cholesky.succeeded()) return false;
  factor.upper = at::empty({n, n}, at::kFloat);
  cholesky.invert_reversed(factor.upper.mutable_data_ptr<float>());
  return kernels::all_finite(context, factor.upper);
}

/// The same by the tensor library, where the Hessian is.
template <class T>
bool try_library(const at::Tensor& hessian, const Diagonal& diagonal, double damping,
                 Factor& factor, const kernels::Context& context) {
  const auto dtype = c10::CppTypeToScalarType<T>::value;
  const int64_t n = hessian.size(0);
  const double scale = unit_of(diagonal), added = damping * diagonal.live_mean;
  const at::Tensor order = factor.permutation.flip(0);
  at::Tensor damped = at::empty({n}, at::kDouble);
  for (int64_t i = 0; i < n; ++i) {
    const double entry = diagonal.values[order.const_data_ptr<int64_t>()[i]];
    damped.mutable_data_ptr<double>()[i] =
        ((entry == 0 ? diagonal.live_mean : entry) + added) * scale;
  }
  damped = damped.to(dtype).to(hessian.device());
  const at::Tensor there = order.to(hessian.device());
  at::Tensor matrix = hessian.index_select(0, there).index_select(1, there).to(dtype).mul_(scale);
  matrix.diagonal().copy_(damped);
  at::Tensor lower, info;
  std::tie(lower, info) = at::linalg_cholesky_ex(matrix);
  matrix.reset();  // memory of a device is short: three matrices of T at most beside the Hessian
  if (info.item<int>() != 0) return false;
  const at::Tensor lost = lower.diagonal().square().le(
      damped * (8 * static_cast<double>(std::numeric_limits<T>::epsilon())));
  if (lost.any().item<bool>()) return false;
  // (J L^-T J)^T, whose rows are contiguous: the library returns columns.
  at::Tensor inverse = at::linalg_solve_triangular(
      lower.mT(), at::eye(n, hessian.options().dtype(dtype)), /*upper=*/true);
  lower.reset();
  inverse = inverse.flip({0, 1});
  factor.upper = inverse.mT().to(at::kFloat).contiguous();
  return is_finite(factor.upper, context);
}

/// In T, in the way of the context's device.
template <class T>
bool try_factor(const at::Tensor& hessian, const Diagonal& diagonal, double damping, Factor& factor,
                const kernels::Context& context) {
  return context.device.uses_library() ? try_library<T>(hessian, diagonal, damping, factor, context)
                                       : try_tiles<T>(hessian, diagonal, damping, factor, context);
}

/// All but U, which takes attempts.
Factor begin_factor(const at::Tensor& hessian, const Diagonal& diagonal, int64_t ordered_run) {
  Factor factor;
  factor.dead = hessian.diagonal().eq(0).to(at::kByte).to(at::kCPU);
  factor.permutation = order_of(diagonal, ordered_run);
  return factor;
}

at::Tensor checked(const at::Tensor& given, const kernels::Context& context) {
  check_hessian(given);
  at::Tensor hessian = given.to(context.device.memory);
  if (!is_finite(hessian, context)) fail(ExitCode::data, "Hessian not finite");
  return hessian;
}

}  // namespace

DampedHessian damp(const at::Tensor& given, const MethodSettings& settings,
                   const kernels::Context& context) {
  const FactorSettings wanted = factor_settings(settings);
  const at::Tensor hessian = checked(given, context);
  const Diagonal diagonal = diagonal_of(hessian);
  Factor factor = begin_factor(hessian, diagonal, wanted.ordered_run);
  factor.damping = wanted.damping;
  auto entries = damped_entries<float>(hessian, diagonal, wanted.damping, factor.permutation);
  return {std::move(factor), std::move(entries)};
}

Factor factorise_inverse(const at::Tensor& hessian, const MethodSettings& settings,
                         const kernels::Context& context) {
  const FactorSettings wanted = factor_settings(settings);
  return factorise_inverse(hessian, wanted.damping, wanted.ordered_run, context);
}

Factor factorise_inverse(const at::Tensor& given, double damping, int64_t ordered_run,
                         const kernels::Context& context) {
  const at::Tensor hessian = checked(given, context);
  const Diagonal diagonal = diagonal_of(hessian);
  Factor factor = begin_factor(hessian, diagonal, ordered_run);
  for (double fraction = damping;; ++factor.retries) {
    factor.damping = fraction;
    if (try_factor<float>(hessian, diagonal, fraction, factor, context)) return factor;
    if (try_factor<double>(hessian, diagonal, fraction, factor, context)) return factor;
    if (fraction >= 1) break;
    fraction = fraction == 0 ? first_damping : std::min(2 * fraction, 1.0);
  }
  fail(ExitCode::data,
       "Hessian not positive definite, not even with its mean diagonal added (damping 1)");
}

Factor trivial_factor(const at::Tensor& hessian) {
  if (hessian.dim() != 1) check_hessian(hessian);
  if (!hessian.isfinite().all().item<bool>()) fail(ExitCode::data, "Hessian not finite");
  Factor factor;
  factor.upper = at::empty({0, 0}, at::kFloat);
  factor.permutation = at::arange(hessian.size(0), at::kLong);
  const at::Tensor squares = mean_squares(hessian).to(at::kCPU);
  check_squares(squares);
  factor.dead = squares.eq(0).to(at::kByte);
  return factor;
}

}  // namespace selfcal
