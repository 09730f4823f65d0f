// solve, inspect, verify: commands about files that a run reads or leaves.
#include <CLI/CLI.hpp>
#include <cstdio>
#include <map>
#include <memory>

#include "launch/commands.hpp"
#include "launch/compute.hpp"
#include "pipeline/config.hpp"
#include "stages/solve/solve_problem.hpp"
#include "storage/gathered_checkpoint.hpp"
#include "storage/inspect.hpp"
#include "storage/layer_file.hpp"
#include "storage/verify.hpp"

namespace selfcal {
namespace {

template <class Value>
using Words = std::map<std::string, Value>;

const Words<AutoFlag> auto_flag_words = {
    {"auto", AutoFlag::automatic}, {"true", AutoFlag::yes}, {"false", AutoFlag::no}};
const Words<at::ScalarType> dtype_words = {
    {"float32", at::kFloat}, {"bfloat16", at::kBFloat16}, {"float16", at::kHalf}};

lanes::Pattern pattern_of(const std::string& text) {
  const auto pattern = parse_pattern(text);
  if (!pattern) throw CLI::ValidationError("--pattern", text + ", expected zeros:of, as in 2:4");
  return *pattern;
}

void add_solve(CLI::App& app) {
  auto* command = app.add_subcommand("solve", "one layer's weight and Hessian through one method");
  const auto options = std::make_shared<SolveProblem>();
  const auto threads = std::make_shared<int>(0);
  MethodSettings& method = options->method;
  method.group_parameters = GroupParameters::published;
  method.bits = 0;
  method.act_order = ActOrder::automatic;
  method.static_groups = AutoFlag::automatic;
  method.error_measure = ErrorMeasure::automatic;
  command
      ->add_option("problem", options->problem,
                   "safetensors with weight and hessian (wanda: or column_sq_norm instead)")
      ->required();
  command->add_option("--out", options->out, "safetensors to write")->required();
  command
      ->add_option(
          "--method", method.name,
          "gptq, sparsegpt, awq (its scales too: input_scale in the output), wanda, magnitude "
          "or nearest")
      ->transform(
          CLI::CheckedTransformer(Words<MethodName>(method_names.begin(), method_names.end())));
  command->add_option("--bits", method.bits, "2 to 8, or 16: only prune");
  command->add_option("--sparsity", method.sparsity.share, "share of the weights to prune");
  command->add_option_function<std::string>(
      "--pattern",
      [&method](const std::string& text) { method.sparsity.pattern = pattern_of(text); },
      "zeros:of, as in 2:4");
  command->add_option("--group-size", method.group_size, "columns a group; -1: the whole row");
  command->add_option("--symmetric", method.symmetric, "true or false");
  command->add_option("--act-order", method.act_order, "auto, none, static or dynamic")
      ->transform(CLI::CheckedTransformer(Words<ActOrder>{{"auto", ActOrder::automatic},
                                                          {"none", ActOrder::none},
                                                          {"static", ActOrder::static_order},
                                                          {"dynamic", ActOrder::dynamic_order}}));
  command
      ->add_option("--static-groups", method.static_groups,
                   "group parameters from the original weight: auto, true or false")
      ->transform(CLI::CheckedTransformer(auto_flag_words));
  command->add_option("--duo-scaling", method.duo_scaling,
                      "awq: scales from the sizes of the weights too");
  command->add_option("--clip", method.clip, "awq: cut off large weights where that helps");
  command->add_option("--mse", method.mse, "search the clipping range: auto, true or false")
      ->transform(CLI::CheckedTransformer(auto_flag_words));
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
    options->method = settle(options->method);
    std::puts(solve_problem(*options, compute.context()).c_str());
  });
}

void add_inspect(CLI::App& app) {
  auto* command = app.add_subcommand(
      "inspect", "what a layer, calibration, checkpoint or safetensors file holds");
  const auto path = std::make_shared<fs::path>();
  command->add_option("path", *path, "file, or model directory")->required();
  command->callback([path] { std::fputs(inspect(*path).c_str(), stdout); });
}

/// What the numerical contract is about: a line a layer, and one for the job as a whole.
void print_content_hashes(const RunDirectory& run) {
  for (const auto& name : run.jobs()) {
    const JobDirectory job = run.job(name);
    std::vector<std::string> hashes;
    for (int64_t layer = 0; fs::exists(job.layer(layer)); ++layer) {
      hashes.push_back(read_layer_header(job.layer(layer)).content_hash);
      fmt::print("{} layer {:04}: {}\n", name, layer, hashes.back());
    }
    fmt::print("{} content hash: {}\n", name, job_content_hash(hashes));
  }
}

/// Every problem is a line on standard error; the exit code is that of bad data.
void verify_one(const fs::path& path) {
  const RunDirectory run(path);
  if (!fs::exists(run.config()))
    fail(ExitCode::data, "{}: not a run directory: it has no run.yaml", path.string());
  std::map<fs::path, Checkpoint> models;
  std::map<std::string, const Checkpoint*> dense;  // by job
  for (const auto& job : load_jobs(run.config()))
    dense[job.name] = &models.try_emplace(job.model, job.model).first->second;
  const Verdict verdict = verify_run(run, [&](const std::string& job) {
    const auto found = dense.find(job);
    return found == dense.end() ? nullptr : found->second;
  });
  for (const auto& line : verdict.lines) std::puts(line.c_str());
  if (verdict.whole()) print_content_hashes(run);
  for (const auto& problem : verdict.problems)
    std::fprintf(stderr, "selfcal: error: %s\n", problem.c_str());
  if (!verdict.whole()) throw Reported(ExitCode::data);
}

/// All of them, whatever is found; the exit code is that of the first in which something is wrong.
void verify(const std::vector<fs::path>& paths) {
  auto code = ExitCode::done;
  for (const auto& path : paths) {
    if (paths.size() > 1) fmt::print("{}:\n", path.string());
    try {
      verify_one(path);
    } catch (const Error& error) {
      if (*error.what() != '\0') std::fprintf(stderr, "selfcal: error: %s\n", error.what());
      if (code == ExitCode::done) code = error.code();
    }
  }
  if (code != ExitCode::done) throw Reported(code);
}

void add_verify(CLI::App& app) {
  auto* command =
      app.add_subcommand("verify", "read everything in runs and check every hash and shape");
  const auto paths = std::make_shared<std::vector<fs::path>>();
  command->add_option("run", *paths, "output of a run; several may be named")->required();
  command->callback([paths] { verify(*paths); });
}

}  // namespace

void add_artefact_commands(CLI::App& app) {
  add_solve(app);
  add_inspect(app);
  add_verify(app);
}

}  // namespace selfcal
