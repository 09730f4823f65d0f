// Problems and a plain float64 solver to hold the fast one against.
#pragma once
#include <ATen/ATen.h>

#include <cstring>
#include <functional>

#include "base/error.hpp"
#include "stages/solve/method.hpp"

namespace selfcal::testing_support {

struct Threads {
  explicit Threads(int count) : pool(count, kernels::use_one_library_thread) {
    kernels::use_one_library_thread();
  }
  kernels::Context context() { return {&pool}; }
  ThreadPool pool;
};

struct Problem {
  at::Tensor weight, hessian;
};

/// The scale of a group and its zero, an integer.
struct GroupScale {
  double scale, zero;
};

/// Of entries of one row: for whole ranges first, then for all that a search tries, in float32 as
/// published.
std::vector<GroupScale> tried_scales(const std::vector<float>& x, const MethodSettings& settings);
/// sum |error|^2.4 of entries that are rounded so, in float64.
double distortion(const std::vector<float>& x, const GroupScale& scale, int bits);

/// A weight and a Hessian of correlated columns of uneven size.
Problem random_problem(int seed, int64_t rows, int64_t columns);

/// What a solve should come to, columns as stored.
struct ReferenceRows {
  at::Tensor weight;  // float64 [rows, columns]
  at::Tensor codes;   // uint8, where the settings quantise
  at::Tensor kept;    // bool: what is not pruned
};

/// The published algorithms, GPTQ, SparseGPT and both in one, column by column, unblocked, in
/// float64 (the blocks matter to dynamic groups and to a share of zeros only).
ReferenceRows reference(const Problem& problem, const MethodSettings& settings);

/// With what its errors are compared with.
struct MeasuredRows : SolvedRows, RowControls {};
MeasuredRows solve(const Problem& problem, const Method& method, at::ScalarType weight_dtype);
MeasuredRows solve(const Problem& problem, const MethodSettings& settings, int threads = 1,
                   at::ScalarType weight_dtype = at::kFloat);

/// tr(E H E^T) / tr(W H W^T) in float64.
double relative_error(const Problem& problem, const at::Tensor& solved);

/// Of the entries of two tensors of one shape.
inline double share_equal(const at::Tensor& a, const at::Tensor& b) {
  return a.eq(b).to(at::kDouble).mean().item<double>();
}

inline bool same_bits(const at::Tensor& a, const at::Tensor& b) {
  return a.sizes() == b.sizes() && a.scalar_type() == b.scalar_type() && a.is_contiguous() &&
         b.is_contiguous() && std::memcmp(a.const_data_ptr(), b.const_data_ptr(), a.nbytes()) == 0;
}

/// Runs action and expects it to fail with the code and a text that contains `text`.
void expect_failure(ExitCode code, const std::string& text, const std::function<void()>& action);

}  // namespace selfcal::testing_support
