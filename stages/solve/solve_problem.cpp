#include "stages/solve/solve_problem.hpp"

#include <ATen/ATen.h>

#include <chrono>
#include <nlohmann/json.hpp>

#include "base/error.hpp"
#include "stages/solve/awq.hpp"
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

/// float32 [columns].
at::Tensor read_vector(const TensorFile& file, const std::string& name, int64_t columns) {
  const TensorEntry& entry = file.entries().at(name);
  if (entry.shape != std::vector<int64_t>{columns} || !at::isFloatingType(entry.dtype)) {
    fail(ExitCode::data, "{}: tensor '{}' is {} [{}], expected floating-point [{}]",
         file.path().string(), name, toString(entry.dtype), fmt::join(entry.shape, ", "), columns);
  }
  return file.read(name).to(at::kFloat);
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

/// The Hessian, or its diagonal where the file has no more and the method needs no more.
at::Tensor read_statistics(const TensorFile& file, int64_t columns,
                           const MethodSettings& settings) {
  static const std::string norms = "column_sq_norm";
  const bool norms_will_do = !file.contains("hessian") && !needs_products(settings);
  return norms_will_do && file.contains(norms) ? read_vector(file, norms, columns)
                                               : read_hessian(file, columns);
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

/// Mean |x| of each column, or what stands for it: the root of the mean square, which differs where
/// columns are distributed differently. A common factor of all columns changes next to nothing.
at::Tensor read_magnitude(const TensorFile& file, const at::Tensor& hessian) {
  static const std::string name = "mean_magnitude";
  if (!file.contains(name)) return hessian.diagonal().clamp_min(0).sqrt();
  return read_vector(file, name, hessian.size(0));
}

/// AWQ's scale of the columns, for one layer by itself.
at::Tensor find_scale(const at::Tensor& weight, const at::Tensor& hessian,
                      const at::Tensor& magnitude, const MethodSettings& settings,
                      const kernels::Context& context) {
  const int64_t columns = weight.size(1);
  if (settings.group_size > 0 && columns % settings.group_size != 0) {
    fail(ExitCode::data, "group size {} does not divide the {} columns of tensor 'weight'",
         settings.group_size, columns);
  }
  return search_scale(candidate_scales({weight}, magnitude, settings), row_step({weight}),
                      [&](const at::Tensor& scales, int64_t step) {
                        const at::Tensor rows = weight.slice(0, 0, weight.size(0), step);
                        return losses_of_scales(rows, hessian, scales, settings, context).sum(0);
                      });
}

struct Outcome {
  Factor factor;
  SolvedRows solved;
  RowControls controls;
  at::Tensor input_scale;  // AWQ
  double factor_seconds = 0, seconds = 0;
};

Outcome solve_layer(const Method& method, const at::Tensor& weight, const at::Tensor& hessian,
                    at::ScalarType weight_dtype) {
  Outcome outcome;
  const auto start = Clock::now();
  outcome.factor = method.factorise(hessian);
  outcome.factor_seconds = seconds_since(start);
  outcome.solved = method.solve(weight, hessian, outcome.factor, weight_dtype);
  outcome.seconds = seconds_since(start);
  outcome.controls = method.controls(weight, hessian, weight_dtype);
  return outcome;
}

/// The weight that is solved is weight * scale, behind x / scale; the one that is returned, and all
/// errors, are of x itself.
Outcome solve_scaled(const Method& method, const SolveProblem& options, const at::Tensor& weight,
                     const at::Tensor& hessian, const at::Tensor& magnitude,
                     const kernels::Context& context) {
  const MethodSettings& settings = options.method;
  const auto start = Clock::now();
  method.factorise(hessian);  // refuses what a search of scales would not notice
  const at::Tensor scale = find_scale(weight, hessian, magnitude, settings, context);
  const double search_seconds = seconds_since(start);
  const at::Tensor unscaled = at::ones({1, weight.size(1)}, at::kFloat);
  Outcome outcome = solve_layer(method, weight.to(at::kFloat) * scale,
                                hessian_of_scaled(hessian, scale), options.weight_dtype);
  SolvedRows& solved = outcome.solved;
  solved.linear.weight =
      (solved.linear.weight.to(at::kFloat) / scale).to(solved.linear.weight.scalar_type());
  outcome.seconds += search_seconds;
  outcome.controls.nearest_error =
      losses_of_scales(weight, hessian, unscaled, settings, context).select(1, 0);
  outcome.input_scale = scale;
  return outcome;
}

}  // namespace

std::string solve_problem(const SolveProblem& options, const kernels::Context& context) try {
  const auto method = make_method(options.method, context);
  const TensorFile file(options.problem);
  const at::Tensor weight = read_matrix(file, "weight"),
                   hessian = read_statistics(file, weight.size(1), options.method);
  const auto [factor, solved, controls, input_scale, factor_seconds, seconds] =
      options.method.name == MethodName::awq
          ? solve_scaled(*method, options, weight, hessian, read_magnitude(file, hessian), context)
          : solve_layer(*method, weight, hessian, options.weight_dtype);
  NamedTensors tensors = tensors_of(solved.linear, weight.size(1));
  if (input_scale.defined()) tensors["input_scale"] = input_scale;
  write_tensor_file(options.out, tensors);

  const double error = solved.error.sum().item<double>(),
               reference = controls.reference.sum().item<double>(),
               nearest = controls.nearest_error.sum().item<double>();
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
