// solve, inspect, verify: commands about files that a run reads or leaves.
#include <CLI/CLI.hpp>
#include <cstdio>
#include <memory>

#include "launch/commands.hpp"
#include "launch/compute.hpp"
#include "stages/solve/solve_problem.hpp"

namespace selfcal {
namespace {

template <class Value>
using Words = std::map<std::string, Value>;

const Words<at::ScalarType> dtype_words = {
    {"float32", at::kFloat}, {"bfloat16", at::kBFloat16}, {"float16", at::kHalf}};

void add_solve(CLI::App& app) {
  auto* command = app.add_subcommand("solve", "one layer's weight and Hessian through one method");
  const auto options = std::make_shared<SolveProblem>();
  const auto threads = std::make_shared<int>(0);
  MethodSettings& method = options->method;
  method.group_parameters = GroupParameters::published;
  command->add_option("problem", options->problem, "safetensors with weight and hessian")
      ->required();
  command->add_option("--out", options->out, "safetensors to write")->required();
  command->add_option("--method", method.name, "gptq or nearest")
      ->transform(CLI::CheckedTransformer(
          Words<MethodName>{{"gptq", MethodName::gptq}, {"nearest", MethodName::nearest}}));
  command->add_option("--bits", method.bits, "2 to 8")->check(CLI::Range(2, 8));
  command->add_option("--group-size", method.group_size, "columns a group; -1: the whole row");
  command->add_option("--symmetric", method.symmetric, "true or false");
  command->add_option("--act-order", method.act_order, "none, static or dynamic")
      ->transform(CLI::CheckedTransformer(Words<ActOrder>{{"none", ActOrder::none},
                                                          {"static", ActOrder::static_order},
                                                          {"dynamic", ActOrder::dynamic_order}}));
  command->add_option("--static-groups", method.static_groups,
                      "group parameters from the original weight");
  command->add_option("--mse", method.mse, "search the clipping range");
  command->add_option("--damping", method.damping, "fraction of the mean of diag(H)")
      ->check(CLI::Range(0.0, 1.0));
  command->add_option("--block-size", method.block_size, "columns between lazy updates")
      ->check(CLI::PositiveNumber);
  command->add_option("--scale-dtype", method.scale_dtype, "float32, bfloat16 or float16")
      ->transform(CLI::CheckedTransformer(dtype_words));
  command->add_option("--group-params", method.group_parameters, "published or current")
      ->transform(CLI::CheckedTransformer(Words<GroupParameters>{
          {"published", GroupParameters::published}, {"current", GroupParameters::current}}));
  command->add_option("--threads", *threads, "0: all usable cores");
  command->callback([options, threads] {
    const Compute compute(*threads);
    std::puts(solve_problem(*options, compute.context()).c_str());
  });
}

}  // namespace

void add_artefact_commands(CLI::App& app) { add_solve(app); }

}  // namespace selfcal
