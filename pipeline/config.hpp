// The configuration of a run: one job or many, read from YAML and the command line, checked against
// one table (config_table.cpp).
#pragma once
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "base/file.hpp"
#include "stages/generate/settings.hpp"
#include "stages/model/model.hpp"
#include "stages/solve/method_settings.hpp"

namespace selfcal {

/// Who does what. Counts of 0 are left to the plan.
struct LayoutSettings {
  enum class Mode { automatic, split, shared };
  Mode mode = Mode::automatic;
  int replicas = 0;     // copies of the model that sample
  int depth = 0;        // ranks a copy is spread over
  int shards = 0;       // runs of layers that are compressed by different teams
  int team = 0;         // ranks a shard
  uint64_t memory = 0;  // bytes a rank may use
  int timeout = 300;    // seconds of silence that end the job
};

/// Where forward passes, statistics and solves compute.
enum class DeviceChoice { automatic, cpu, cuda };

/// What the next layer's statistics are measured on: outputs of the compressed layers or of the
/// dense model.
enum class Propagation { sequential, dense };

/// Settings of the layers whose name the expression matches; the first override that matches a
/// layer counts.
struct Override {
  std::string match;  // ECMAScript regular expression, searched in the layer's name
  std::optional<int> bits;
  std::optional<int64_t> group_size;
  std::optional<MethodName> method = {};
  std::optional<double> sparsity = {};
  std::optional<lanes::Pattern> pattern = {};  // of 0: none
  bool skip = false;
};

/// Perplexity of the compressed model on a token file; no path, no evaluation.
struct EvaluateSettings {
  /// The loss of the dense and the compressed model on the calibration text; automatic: where
  /// another job of the run differs in propagation only.
  AutoFlag calibration_loss = AutoFlag::automatic;
  std::string tokens;
  int64_t window = 2048;
  int64_t stride = 2048;
  /// Of the text, once it has been read: how many there are, and tokens of one.
  int64_t leaves = 0, leaf_tokens = 0;
};

/// What one job is. A run is a list of them; output, device, threads and layout are the same in
/// all.
struct RunConfig {
  RunConfig() {
    method.scale_dtype = at::ScalarType::Undefined;
    method.bits = 0;
    method.act_order = ActOrder::automatic;
    method.error_measure = ErrorMeasure::automatic;
    method.static_groups = AutoFlag::automatic;
    method.mse = AutoFlag::automatic;
  }

  fs::path model;
  std::string dtype = "auto";
  fs::path output;
  std::string name = "default";  // of the job
  int64_t seed = 0;
  DeviceChoice device = DeviceChoice::cpu;
  int threads = 0;  // 0: the cores this rank may use
  LayoutSettings layout;
  CalibrationSettings calibration;
  MethodSettings method;  // scale_dtype Undefined: auto, until resolve(); bits 0, act_order,
                          // static_groups and mse automatic: as each layer's method needs, see
                          // settings_for()
  Propagation propagation = Propagation::sequential;
  bool true_sequential = true;
  std::vector<std::string> skip = {"lm_head"};
  std::vector<Override> overrides;
  std::vector<std::string> exports = {"compressed-tensors"};
  EvaluateSettings evaluate;
};

/// Reads the file, then applies `settings` ("key=value", the value in YAML) on top of what its jobs
/// have in common. `jobs` and `sweep` make many jobs of it: every entry of the list at every point
/// of the grid, in that order, with names of their own. Anything wrong is ExitCode::config with
/// `file:line: key: found ..., expected ...`; a setting without "=" is ExitCode::usage. Paths are
/// as written: relative to the working directory.
std::vector<RunConfig> load_jobs(const fs::path& file,
                                 const std::vector<std::string>& settings = {});
/// The same from text; `name` stands in the error messages.
std::vector<RunConfig> parse_jobs(const std::string& text, const std::string& name,
                                  const std::vector<std::string>& settings = {});
/// The same where there must be one job.
RunConfig parse_config(const std::string& text, const std::string& name,
                       const std::vector<std::string>& settings = {});
/// The job of that name; ExitCode::config, with the names there are, where there is none.
const RunConfig& job_named(const std::vector<RunConfig>& jobs, const std::string& name);

/// YAML with every default written out; parse_config reads it back to the same configuration.
std::string to_yaml(const RunConfig& config);
/// The same of a run: what its jobs have in common, then `jobs` with what differs.
std::string to_yaml(const std::vector<RunConfig>& jobs);

/// Equal for jobs whose dense forward is the same: model, dtype, calibration and its cut into
/// leaves.
std::string forward_key(const RunConfig& config);

/// Whether all that their results depend on is the same but the propagation, which is not.
bool differ_in_propagation_only(const RunConfig& a, const RunConfig& b);
/// Whether a job measures its loss; `beside`: another of the run differs in propagation only.
bool measures_loss(const RunConfig& config, bool beside);

/// The table of keys: Markdown for docs/config.md.
std::string config_markdown();
/// The table of keys as plain text for a terminal.
std::string config_help();

/// Fills what depends on the model (dtype and scale_dtype auto: what the checkpoint has) and checks
/// what it limits (length). Idempotent. ExitCode::config.
RunConfig resolve(RunConfig config, const ModelShape& shape);

/// A linear layer by its full name, with or without ".weight": "model.layers.0.mlp.up_proj", weight
/// [rows, columns].
struct NamedLinear {
  std::string name;
  int64_t rows = 0;
  int64_t columns = 0;
};

/// The settings of one linear layer after skip and overrides; nothing where it is skipped.
std::optional<MethodSettings> settings_for(const RunConfig& config, const std::string& tensor_name);

/// Group sizes and patterns must divide the columns, every override must match a layer, each
/// layer's settings must go together, and exports must be able to hold them. The error lists the
/// layers, and the sizes that would do. ExitCode::config.
void check_linears(const RunConfig& config, const std::vector<NamedLinear>& linears);

/// JSON of the configuration's part of the job's identity: method, overrides, propagation, fixed
/// shapes, dtype, seed and format version. Output, name, layout, threads, exports and evaluation
/// are not in it; the model, the calibration content and the numeric kind are added by the job.
std::string identity(const RunConfig& config);

/// "sequential" ... as they are written in the configuration.
std::string to_text(Propagation propagation);
std::string to_text(LayoutSettings::Mode mode);
/// "float32", "bfloat16", "float16"; "auto" for any other.
std::string to_text(at::ScalarType dtype);

}  // namespace selfcal
