#include "pipeline/config.hpp"

#include <algorithm>

#include "base/error.hpp"
#include "pipeline/config_table.hpp"
#include "pipeline/config_values.hpp"

namespace selfcal {
namespace {

constexpr size_t largest_file = 1 << 20;

/// Bytes of the UTF-8 character that starts at `at`; 0 where none does.
size_t character_bytes(const std::string& text, size_t at) {
  const auto byte = [&](size_t i) {
    return i < text.size() ? static_cast<unsigned char>(text[i]) : 0u;
  };
  const unsigned lead = byte(at);
  if (lead < 0x80) return lead == 0 ? 0 : 1;
  const size_t length = lead >= 0xf0 && lead <= 0xf4  ? 4
                        : lead >= 0xe0 && lead < 0xf0 ? 3
                        : lead >= 0xc2 && lead < 0xe0 ? 2
                                                      : 0;
  for (size_t i = 1; i < length; ++i)
    if ((byte(at + i) & 0xc0) != 0x80) return 0;
  return length;
}

/// YAML that is not plain text would reach the parser's corners, and messages of one line could not
/// quote it.
void check_text(const std::string& text, const std::string& name) {
  if (text.size() > largest_file)
    fail(ExitCode::config, "{}: found {} bytes, expected a configuration of at most {}", name,
         text.size(), largest_file);
  int64_t line = 1;
  for (size_t at = 0; at < text.size();) {
    const size_t length = character_bytes(text, at);
    if (length == 0)
      fail(ExitCode::config, "{}:{}: found the byte 0x{:02x}, expected UTF-8 text", name, line,
           static_cast<unsigned char>(text[at]));
    if (text[at] == '\n') ++line;
    at += length;
  }
}

YAML::Node parse_yaml(const std::string& text, const std::string& name) {
  check_text(text, name);
  try {
    const auto documents = YAML::LoadAll(text);
    if (documents.size() > 1)
      fail(ExitCode::config, "{}: found {} YAML documents, expected one", name, documents.size());
    return documents.empty() ? YAML::Node() : documents[0];
  } catch (const YAML::Exception& error) {
    fail(ExitCode::config, "{}:{}: not YAML: {}", name, error.mark.line + 1, error.msg);
  }
}

void apply(RunConfig& config, const std::string& setting, const std::vector<Key<RunConfig>>& keys) {
  const size_t equals = setting.find('=');
  if (equals == std::string::npos || equals == 0)
    fail(ExitCode::usage, "--set {}: expected key=value, as in --set method.bits=3", setting);
  const std::string source = "--set " + setting;
  check_text(setting, "--set");
  const MapReader reader(source, false);
  const YAML::Node value = parse_yaml(setting.substr(equals + 1), source);
  reader.read_value(config, setting.substr(0, equals), value, value, keys);
}

void check_method(const RunConfig& config, const std::string& name) {
  const MethodSettings method = settle(config.method);
  const double share = method.sparsity.share;
  const lanes::Pattern& pattern = method.sparsity.pattern;
  if (method.act_order == ActOrder::static_order && method.static_groups == AutoFlag::no)
    fail(ExitCode::config,
         "{}: method.static_groups: found false, expected true (method.act_order is static)", name);
  if (method.act_order != ActOrder::none && method.prunes() && method.name != MethodName::sparsegpt)
    fail(ExitCode::config,
         "{}: method.act_order: found {}, expected auto or none (method.name is {})", name,
         method.act_order == ActOrder::static_order ? "static" : "dynamic", to_text(method.name));
  if (!method.quantises() && !method.prunes())
    fail(ExitCode::config, "{}: method.bits: found 16, expected auto or 2 to 8 (method.name is {})",
         name, to_text(method.name));
  if (share > 0 && pattern.of > 0)
    fail(ExitCode::config, "{}: method.pattern: found {}:{} beside method.sparsity, expected one",
         name, pattern.zeros, pattern.of);
  if (method.prunes() && !method.sparsity.any())
    fail(ExitCode::config,
         "{}: method.sparsity: found nothing, expected a share or method.pattern (method.name is "
         "{})",
         name, to_text(method.name));
  const bool overridden = std::ranges::any_of(
      config.overrides, [](const Override& entry) { return entry.method.has_value(); });
  if (method.sparsity.any() && !method.prunes() && !overridden)
    fail(ExitCode::config,
         "{}: method.{}: expected nothing unless a method prunes (method.name is {})", name,
         pattern.of > 0 ? "pattern" : "sparsity", to_text(method.name));
  if (method.sparsity.by_outliers && share == 0)
    fail(ExitCode::config,
         "{}: method.layer_sparsity: found owl, expected uniform unless method.sparsity is set",
         name);
  if (method.name == MethodName::sparsegpt && pattern.of > 0 && method.block_size % pattern.of != 0)
    fail(ExitCode::config, "{}: method.block_size: found {}, expected a multiple of {}", name,
         method.block_size, pattern.of);
}

/// What no single key can tell.
void check_together(const RunConfig& config, const std::string& name) {
  const auto& calibration = config.calibration;
  if (calibration.source == CalibrationSource::tokens && calibration.tokens_path.empty())
    fail(ExitCode::config,
         "{}: calibration.tokens: found nothing, expected a path (calibration.source is tokens)",
         name);
  if (calibration.source != CalibrationSource::tokens && !calibration.tokens_path.empty())
    fail(ExitCode::config,
         "{}: calibration.tokens: found {}, expected null unless calibration.source is tokens",
         name, values::quoted(calibration.tokens_path));
  check_method(config, name);
  if (config.evaluate.stride > config.evaluate.window)
    fail(ExitCode::config,
         "{}: evaluate.perplexity.stride: found {}, expected at most the window, {}", name,
         config.evaluate.stride, config.evaluate.window);
}

}  // namespace

std::vector<RunConfig> parse_jobs(const std::string& text, const std::string& name,
                                  const std::vector<std::string>& settings) {
  const YAML::Node document = parse_yaml(text, name);
  if (document.IsNull() && settings.empty())
    fail(ExitCode::config,
         "{}: found nothing, expected a configuration (`selfcal config-help` lists the keys)",
         name);
  RunConfig common;
  ManyJobs many;
  std::vector<Key<RunConfig>> keys = config_keys();
  for (auto& key : many_jobs_keys(many)) keys.push_back(std::move(key));
  MapReader(name, true).read(common, document, keys);
  for (const auto& setting : settings) apply(common, setting, keys);

  std::vector<RunConfig> jobs = make_jobs(common, many);
  for (auto& job : jobs) {
    const std::string place = jobs.size() == 1 ? name : name + ": job " + job.name;
    if (const auto* key = missing_key(job, config_keys()))
      fail(ExitCode::config, "{}: {}: found nothing, expected {}", place, key->path, key->expected);
    job.calibration.seed = job.seed;
    check_together(job, place);
  }
  return jobs;
}

RunConfig parse_config(const std::string& text, const std::string& name,
                       const std::vector<std::string>& settings) {
  auto jobs = parse_jobs(text, name, settings);
  if (jobs.size() != 1)
    fail(ExitCode::config, "{}: found {} jobs, expected one", name, jobs.size());
  return std::move(jobs.front());
}

std::vector<RunConfig> load_jobs(const fs::path& file, const std::vector<std::string>& settings) {
  std::string text;
  try {
    text = read_text(file);
  } catch (const Error& error) {
    fail(ExitCode::config, "{}", error.what());
  }
  return parse_jobs(text, file.string(), settings);
}

const RunConfig& job_named(const std::vector<RunConfig>& jobs, const std::string& name) {
  std::vector<std::string> names;
  for (const auto& job : jobs) {
    if (job.name == name) return job;
    names.push_back(job.name);
  }
  fail(ExitCode::config, "job: found {}, expected {}", values::quoted(name),
       fmt::join(names, " or "));
}

}  // namespace selfcal
