// logits, evaluate, export: commands about one model, the first two on one rank.
#include <CLI/CLI.hpp>
#include <cstdio>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>

#include "comm/agreement.hpp"
#include "comm/watchdog.hpp"
#include "launch/commands.hpp"
#include "launch/compute.hpp"
#include "launch/on_ranks.hpp"
#include "pipeline/config.hpp"
#include "pipeline/progress.hpp"
#include "pipeline/run_blocks.hpp"
#include "stages/evaluate/logits.hpp"
#include "stages/evaluate/perplexity.hpp"
#include "stages/export/export.hpp"
#include "storage/layer_scan.hpp"

namespace selfcal {
namespace {

/// A directory given to a command: a Hugging Face model, or a run of ours.
bool is_run(const fs::path& directory) { return fs::exists(RunDirectory(directory).config()); }

/// The job of that name; without a name, the only one.
RunConfig job_of(const RunDirectory& run, const std::string& name) {
  const auto jobs = load_jobs(run.config());
  if (name.empty() && jobs.size() == 1) return jobs.front();
  return job_named(jobs, name);
}

struct LogitsOptions {
  fs::path model, tokens, out;
  std::string dtype = "auto";
  int threads = 0;
};

void add_logits(CLI::App& app) {
  auto* command = app.add_subcommand("logits", "logits of given tokens, for parity checks");
  const auto options = std::make_shared<LogitsOptions>();
  command->add_option("model", options->model, "Hugging Face directory")->required();
  command
      ->add_option("--tokens", options->tokens, "safetensors with input_ids int64 [batch, tokens]")
      ->required();
  command
      ->add_option("--out", options->out,
                   "safetensors to write: logits float32 [batch, tokens, vocab]")
      ->required();
  command->add_option("--dtype", options->dtype, "auto, float32 or bfloat16: what to compute in");
  command->add_option("--threads", options->threads, "0: all usable cores");
  command->callback([options] {
    const Compute compute(options->threads);
    write_logits(options->model, options->tokens, options->out, options->dtype, compute.context());
  });
}

struct EvaluateOptions {
  fs::path directory, tokens;
  std::string job, dtype;
  PerplexitySettings settings;
  int threads = 0;
};

void evaluate(const EvaluateOptions& options) {
  const Compute compute(options.threads);
  const bool run = is_run(options.directory);
  RunConfig config;
  if (run) config = job_of(RunDirectory(options.directory), options.job);
  const std::string dtype = !options.dtype.empty() ? options.dtype : run ? config.dtype : "auto";
  const auto model = open_model(run ? config.model : options.directory, dtype, compute.context());
  const BlockSource blocks =
      run ? compressed_blocks(*model, RunDirectory(options.directory).job(config.name))
          : dense_blocks(*model);
  Progress progress(true);
  progress.start("evaluate", model->shape().layers, "layers");
  progress.update(0);
  const Perplexity result = measure_perplexity(
      *model, read_text_tokens(options.tokens), options.settings, model->read_outer(), blocks,
      compute.context(), [&](int64_t done, int64_t) { progress.update(done); });
  progress.finish();
  const nlohmann::json line{{"perplexity", result.perplexity},
                            {"loss", result.loss},
                            {"tokens", result.tokens},
                            {"windows", result.windows}};
  std::puts(line.dump().c_str());
}

void add_evaluate(CLI::App& app) {
  auto* command = app.add_subcommand("evaluate", "perplexity of a model directory or of a run");
  const auto options = std::make_shared<EvaluateOptions>();
  command
      ->add_option("directory", options->directory,
                   "Hugging Face directory, or the output of a run")
      ->required();
  command
      ->add_option("--tokens", options->tokens,
                   "safetensors with input_ids [1, tokens] (tools/tokenize)")
      ->required();
  command->add_option("--window", options->settings.window, "tokens a window")
      ->check(CLI::PositiveNumber);
  command->add_option("--stride", options->settings.stride, "tokens between windows")
      ->check(CLI::PositiveNumber);
  command->add_option("--windows", options->settings.windows, "only so many; 0: all");
  command->add_option("--job", options->job, "job of a run that has several");
  command->add_option("--dtype", options->dtype, "auto, float32 or bfloat16: what to compute in");
  command->add_option("--threads", options->threads, "0: all usable cores");
  command->callback([options] { evaluate(*options); });
}

struct ExportOptions {
  fs::path run, out;
  std::string format = "compressed-tensors", job;
};

/// On one rank, or on many.
void export_run(const ExportOptions& options, const Communicator& world) {
  const Watchdog watchdog(world, static_cast<double>(LayoutSettings().timeout));
  const Compute compute(1);
  const RunDirectory run(options.run);
  std::optional<JobDirectory> job;
  std::unique_ptr<Model> model;
  std::string job_id;
  ExportFormat format{};
  agree(world, [&] {
    format = export_format_of(options.format);
    run.expect_run();
    const RunConfig config = job_of(run, options.job);
    model = open_model(config.model, config.dtype, compute.context());
    job = run.job(config.name);
    if (fs::exists(job->layer(0))) job_id = read_layer_header(job->layer(0)).job_id;
    if (job_id.empty())
      fail(ExitCode::data, "{}: no committed layer 0; is the run complete?", job->path().string());
  });
  export_model(world, {model->checkpoint(), *job, model->shape().layers, job_id}, format,
               options.out);
}

void add_export(CLI::App& app) {
  auto* command = app.add_subcommand(
      "export",
      "a finished run as a directory that transformers and vLLM load (alone, or under "
      "mpirun or srun)");
  const auto options = std::make_shared<ExportOptions>();
  command->add_option("run", options->run, "output of a run")->required();
  command->add_option("--format", options->format,
                      "compressed-tensors, gptq, gptq_v2, awq or dense");
  command->add_option("--out", options->out, "directory to make")->required();
  command->add_option("--job", options->job, "job of a run that has several");
  command->callback(
      [options] { on_ranks([&](const Communicator& world) { export_run(*options, world); }); });
}

}  // namespace

void add_model_commands(CLI::App& app) {
  add_logits(app);
  add_evaluate(app);
  add_export(app);
}

}  // namespace selfcal
