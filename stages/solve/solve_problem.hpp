// The `solve` command: one linear layer's weight and Hessian in a file, solved by one method,
// written to another.
#pragma once
#include <string>

#include "base/file.hpp"
#include "stages/solve/method.hpp"

namespace selfcal {

struct SolveProblem {
  fs::path problem;  // safetensors: weight float32 [out, in], hessian float32 [in, in];
                     // instead of it, where error_measure norms needs no more (wanda):
                     // column_sq_norm float32 [in], the mean squares of the inputs in any unit;
                     // awq: mean_magnitude float32 [in], mean |x|, where the file has it
  fs::path out;      // safetensors: weight; codes (uint8 [out, in], not packed), scales, zeros
                     // [out, groups], g_idx and mask (uint8 [out, in], 0: pruned) where they apply.
                     // awq: codes and scales are those of weight * input_scale, input_scale float32
                     // [in]; weight is divided by it again, so that it is for the input as it is
  MethodSettings method;
  at::ScalarType weight_dtype = at::kFloat;  // of the weight that is written
};

/// Solves and writes atomically. Returns one line of JSON: method, rows, columns, relative_error,
/// nearest_relative_error (of the data-free control), zeros (share of the weights), loss, damping,
/// damping_retries, dead_columns, factor_seconds, solve_seconds, seconds. Independent. A file
/// without the tensors, or with others than expected: ExitCode::data with file and tensor named.
std::string solve_problem(const SolveProblem& options, const kernels::Context& context);

}  // namespace selfcal
