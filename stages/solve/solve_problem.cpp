#include "stages/solve/solve_problem.hpp"

#include <ATen/ATen.h>

#include <chrono>
#include <nlohmann/json.hpp>

#include "base/error.hpp"
#include "storage/packing.hpp"
#include "storage/tensor_file.hpp"

namespace selfcal {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

at::Tensor read_matrix(const TensorFile& file, const std::string& name) {
  if (!file.contains(name)) fail(ExitCode::data, "{}: no tensor '{}'", file.path().string(), name);
  const TensorEntry& entry = file.entries().at(name);
  if (entry.shape.size() != 2 || entry.shape[0] < 1 || entry.shape[1] < 1 ||
      !at::isFloatingType(entry.dtype)) {
    fail(ExitCode::data, "{}: tensor '{}' is {} [{}], expected a floating-point matrix",
         file.path().string(), name, toString(entry.dtype), fmt::join(entry.shape, ", "));
  }
  return file.read(name);
}

at::Tensor read_hessian(const TensorFile& file, int64_t columns) {
  const at::Tensor hessian = read_matrix(file, "hessian").to(at::kFloat);
  if (hessian.size(0) != columns || hessian.size(1) != columns) {
    fail(ExitCode::data,
         "{}: tensor 'hessian' is [{}], expected [{}, {}] like the weight's columns",
         file.path().string(), fmt::join(hessian.sizes(), ", "), columns, columns);
  }
  // NaN passes here and is found by the factorisation, which says so.
  const at::Tensor difference = (hessian - hessian.t()).abs(), size = hessian.abs();
  if ((difference > 1e-4 * size.max()).any().item<bool>()) {
    fail(ExitCode::data, "{}: tensor 'hessian' is not symmetric", file.path().string());
  }
  return hessian;
}

NamedTensors tensors_of(const CompressedLinear& linear, int64_t columns) {
  NamedTensors tensors{{"weight", linear.weight}};
  if (linear.codes.defined()) {
    tensors["codes"] = unpack_codes(linear.codes, linear.bits, columns);
    tensors["scales"] = linear.scale;
    tensors["zeros"] = linear.zero;
  }
  if (linear.mask.defined()) tensors["mask"] = unpack_mask(linear.mask, columns).to(at::kByte);
  if (linear.g_idx.defined()) tensors["g_idx"] = linear.g_idx;
  return tensors;
}

}  // namespace

std::string solve_problem(const SolveProblem& options, const kernels::Context& context) try {
  const auto method = make_method(options.method, context);
  const TensorFile file(options.problem);
  const at::Tensor weight = read_matrix(file, "weight"),
                   hessian = read_hessian(file, weight.size(1));
  const auto start = Clock::now();
  const Factor factor = method->factorise(hessian);
  const double factor_seconds = seconds_since(start);
  const SolvedRows solved = method->solve(weight, hessian, factor, options.weight_dtype);
  const double seconds = seconds_since(start);
  write_tensor_file(options.out, tensors_of(solved.linear, weight.size(1)));

  const double error = solved.error.sum().item<double>(),
               reference = solved.reference.sum().item<double>(),
               nearest = solved.nearest_error.sum().item<double>();
  const double zeros = solved.linear.weight.eq(0).to(at::kDouble).mean().item<double>();
  const auto relative = [&](double value) { return reference > 0 ? value / reference : 0.0; };
  return nlohmann::ordered_json{{"method", to_text(options.method.name)},
                                {"rows", weight.size(0)},
                                {"columns", weight.size(1)},
                                {"relative_error", relative(error)},
                                {"nearest_relative_error", relative(nearest)},
                                {"zeros", zeros},
                                {"loss", error},
                                {"damping", factor.damping},
                                {"damping_retries", factor.retries},
                                {"dead_columns", solved.linear.dead_columns},
                                {"factor_seconds", factor_seconds},
                                {"solve_seconds", seconds - factor_seconds},
                                {"seconds", seconds}}
      .dump();
} catch (const Error& error) {
  // What the solver found wrong does not know its file.
  const std::string text = error.what(), name = options.problem.string();
  if (error.code() != ExitCode::data || text.find(name) != std::string::npos) throw;
  throw Error(error.code(), name + ": " + text);
}

}  // namespace selfcal
