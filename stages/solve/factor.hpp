// The factor that GPTQ and its relatives read: U upper with U^T U = (c (H + damping))^-1, c a power
// of four.
#pragma once
#include "stages/solve/cholesky.hpp"
#include "stages/solve/method.hpp"

namespace selfcal {

/// hessian: contiguous float32 [columns, columns], symmetric, in any memory; of the damping and
/// order that the settings ask for. Where the context's device works with the tensor library, it
/// factorises there (cuSOLVER on GPUs, LAPACK on host memory), and `upper` stays in its memory.
Factor factorise_inverse(const at::Tensor& hessian, const MethodSettings& settings,
                         const kernels::Context& context);

/// `ordered_run`: runs of so many columns in descending order of the sum of their diag(H), ties by
/// column; 0: all as they are. The fraction `damping` of the mean live diagonal is added; a matrix
/// that is not positive definite in float32 is tried in float64, then the fraction is doubled, up
/// to 1. Not finite, or never positive definite: ExitCode::data. Bits do not depend on the number
/// of threads.
Factor factorise_inverse(const at::Tensor& hessian, double damping, int64_t ordered_run,
                         const kernels::Context& context);

/// What is left to factorise of a Hessian.
struct DampedHessian {
  Factor factor;                     // all but its `upper`
  Cholesky<float>::Entries entries;  // in reversed order of the permutation, scaled
};

/// As factorise_inverse() begins on the host's threads. Independent; not finite: ExitCode::data.
DampedHessian damp(const at::Tensor& hessian, const MethodSettings& settings,
                   const kernels::Context& context);

/// For methods without one: the columns in order, `upper` empty. hessian: or its diagonal. Entries
/// that are not finite, or negative ones on the diagonal: ExitCode::data.
Factor trivial_factor(const at::Tensor& hessian);

}  // namespace selfcal
