// What a job came to: errors of every layer, where the time went, what needs a look. Plain numbers
// and text, gathered from all ranks, written as JSON for machines and as one HTML page for people.
#pragma once
#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "base/file.hpp"
#include "comm/communicator.hpp"
#include "pipeline/timeline.hpp"

namespace selfcal {

/// One compressed linear layer.
struct LinearReport {
  std::string name;  // "model.layers.7.mlp.up_proj"
  int64_t rows = 0;
  int64_t columns = 0;
  int bits = 0;
  int64_t group_size = 0;
  double relative_error = 0;  // tr(E H E^T) / tr(W H W^T)
  double nearest_error = 0;   // the same for round-to-nearest: the control
  double loss = 0;            // tr(E H E^T)
  double damping = 0;         // fraction of the mean diagonal that was added
  int damping_retries = 0;
  int64_t dead_columns = 0;
  double sparsity = 0;  // share of the weights that were pruned
};

struct LayerReport {
  int64_t layer = 0;
  bool replayed = false;   // committed by an earlier run
  PhaseSeconds seconds{};  // of the team's first rank
  std::vector<LinearReport> linears;
};

struct RankReport {
  int rank = 0;
  std::string host;
  std::string device;  // that it computed on: "cpu", "cuda:1"
  std::string role;    // "sampled, then compressed"
  int threads = 0;
  PhaseSeconds seconds{};
  Timeline timeline;
  int64_t peak_memory = 0;     // bytes, resident
  int64_t planned_memory = 0;  // the plan's peak; 0: not known
  int64_t bytes_read = 0;      // from files
  int64_t bytes_written = 0;   // to files
  int64_t bytes_sent = 0;      // to other ranks
};

struct PerplexityReport {
  double dense = 0;
  double compressed = 0;
  std::string tokens;  // the file
  int64_t windows = 0;
  int64_t window = 0;
};

/// Mean cross-entropy of a token of the calibration text, in nats.
struct CalibrationLossReport {
  double dense = 0;
  double compressed = 0;
  int64_t tokens = 0;  // of the text's beginning

  double lost() const { return compressed - dense; }
};

/// Another job of the run, which differs from this one in its propagation only.
struct BesideReport {
  std::string job;
  std::string propagation;
  double relative_error = 0;            // mean, as in mean_errors()
  std::vector<double> relative_errors;  // of each layer
  std::optional<CalibrationLossReport> calibration_loss;
};

struct RunReport {
  std::string tool;          // "selfcal 0.1.0"
  std::string numeric_kind;  // instruction set and library versions
  std::string job;           // its name
  std::string job_id;
  std::string model;  // path as given
  std::string architecture;
  std::string method;           // "gptq"
  std::string propagation;      // "sequential"
  std::string layout;           // one line
  std::string config;           // YAML as resolved
  std::string shared;           // with which jobs, and how the time is divided; empty: alone
  std::string finished;         // UTC, "2026-08-01 12:00:00"
  double damping = 0;           // as configured
  double seconds = 0;           // of this run, start to report
  int64_t tokens = 0;           // of the calibration set
  int64_t tokens_sampled = 0;   // by this run
  double sampling_seconds = 0;  // from the first token to the last
  std::vector<LayerReport> layers;
  std::vector<RankReport> ranks;
  std::optional<PerplexityReport> perplexity;
  std::optional<CalibrationLossReport> calibration_loss;
  std::optional<BesideReport> beside;
};

/// This process: host, peak memory, bytes of files. Independent.
RankReport report_of_this_rank(int rank, const PhaseSeconds& seconds);

/// Collective over `world`: everyone's ranks and layers in one report, sorted; what each rank gives
/// in `ranks` and `layers` is its own (a team's layers are given by one of its ranks). All other
/// fields are rank 0's.
RunReport gather_report(const Communicator& world, RunReport mine);

std::string to_json(const RunReport& report);
/// The inverse of to_json. ExitCode::data.
RunReport report_from_json(const std::string& text);

/// A page that needs nothing else: styles and plots are inside it.
std::string report_page(const RunReport& report);

/// Sentences about what should not be trusted blindly: damping raised, dead columns, layers worse
/// than round-to-nearest, figures that are not finite. Empty when all is well.
std::vector<std::string> needs_a_look(const RunReport& report);

/// report.json at `json` and report.html beside it; atomic each.
void write_report(const RunReport& report, const fs::path& json);

/// Part of the ranks' time in which they waited for each other.
double idle_share(const RunReport& report);

/// What a layer is held against: "round-to-nearest", or "magnitude pruning" for methods that prune.
std::string control_of(const RunReport& report);

/// Mean over the layers, each by the size of its weight.
struct MeanErrors {
  double compressed = 0;
  double nearest = 0;
  double bits = 0;  // a weight, scales included
};
MeanErrors mean_errors(const RunReport& report);
/// The first of them, of each layer.
std::vector<double> mean_errors_of_layers(const RunReport& report);

/// What another job's report says of this one.
BesideReport as_beside(const RunReport& report);
/// Both jobs' report.json at `json` and `other`: the first gets its section about the other, and
/// its page, unless it has them. ExitCode::data, ExitCode::io.
void put_beside(const fs::path& json, const fs::path& other);

}  // namespace selfcal
