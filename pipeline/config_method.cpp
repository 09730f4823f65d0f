// What the configuration means for a model: settings of each layer, checks against its shapes, the
// job's identity.
#include <algorithm>
#include <map>
#include <nlohmann/json.hpp>
#include <numeric>
#include <regex>
#include <set>

#include "base/error.hpp"
#include "pipeline/config_table.hpp"
#include "pipeline/leaves.hpp"
#include "stages/solve/method.hpp"
#include "storage/module_name.hpp"

namespace selfcal {
namespace {

constexpr int format_version = 1;     // of the layer files
constexpr int algorithm_version = 6;  // raised when the same settings give other results

bool matches(const std::string& expression, const std::string& tensor_name) {
  return std::regex_search(module_of(tensor_name), std::regex(expression));
}

/// Group sizes that divide `columns` and suit packed storage: multiples of 32, or of 8 where those
/// are too few.
std::string sizes_that_would_do(int64_t columns) {
  std::vector<std::string> sizes;
  for (const int64_t step : {32, 8, 1}) {
    for (int64_t size = step; size <= std::min<int64_t>(columns, 1024); size += step)
      if (columns % size == 0) sizes.push_back(std::to_string(size));
    if (!sizes.empty()) break;
  }
  return fmt::format("{} or -1", fmt::join(sizes, ", "));
}

/// Whether a key is part of the job's identity. The calibration's keys are not: its content is.
bool decides_results(const std::string& path) {
  static const std::set<std::string> alone{"model.dtype", "seed", "skip", "overrides"};
  return path.starts_with("method.") || alone.contains(path);
}

/// The layers that were given one group size, and the common divisor of their columns.
struct GroupUse {
  std::vector<const NamedLinear*> undivided;
  int64_t common_columns = 0;
};

[[noreturn]] void refuse(int64_t group_size, const GroupUse& use) {
  std::map<int64_t, std::vector<std::string>> by_columns;
  for (const auto* linear : use.undivided)
    by_columns[linear->columns].push_back(module_of(linear->name));
  std::vector<std::string> parts;
  for (const auto& [columns, names] : by_columns)
    parts.push_back(fmt::format("the {} inputs of {} {} ({}{})", columns, names.size(),
                                names.size() == 1 ? "layer" : "layers", names[0],
                                names.size() > 1 ? ", ..." : ""));
  fail(ExitCode::config, "method.group_size: {} does not divide {}; {} would", group_size,
       fmt::join(parts, " and "), sizes_that_would_do(use.common_columns));
}

/// Whose outputs meet in a product: AWQ leaves their largest weights alone.
bool makes_queries_or_keys(const std::string& tensor_name) {
  static const std::regex names("(q_proj|k_proj|qkv_proj|query_key_value|W_pack)$",
                                std::regex::optimize);
  return std::regex_search(module_of(tensor_name), names);
}

/// What a layer's settings, with its overrides, ask of its method and its shape.
void check_layer(const MethodSettings& settings, const NamedLinear& linear) {
  const std::string name = module_of(linear.name);
  try {
    MethodSettings known = settings;
    if (known.scale_dtype == at::ScalarType::Undefined) known.scale_dtype = at::kFloat;
    check_settings(known);
  } catch (const Error& error) {
    fail(error.code(), "method: {}: {}", name, error.what());
  }
  const auto& pattern = settings.sparsity.pattern;
  if (pattern.of > 0 && linear.columns % pattern.of != 0)
    fail(ExitCode::config, "method.pattern: {}:{} does not divide the {} inputs of {}",
         pattern.zeros, pattern.of, linear.columns, name);
}

/// Whether columns of a row are dealt to groups one by one.
bool deals_columns(const MethodSettings& settings) {
  return settings.act_order == ActOrder::dynamic_order && settings.group_size != -1;
}

/// What the formats cannot hold of a quantised layer; said before hours of work.
void check_exports(const RunConfig& config, const MethodSettings& settings,
                   const NamedLinear& linear) {
  if (!settings.quantises()) return;
  for (const auto& format : config.exports) {
    const bool holds = format == "awq" ? settings.bits == 4
                                       : !format.starts_with("gptq") ||
                                             std::set{2, 3, 4, 8}.contains(settings.bits);
    if (!holds)
      fail(ExitCode::config, "export: found {}, which cannot hold the {} bits of {}", format,
           settings.bits, module_of(linear.name));
    if (deals_columns(settings) && (format == "awq" || format == "compressed-tensors"))
      fail(ExitCode::config,
           "export: found {}, which cannot hold method.act_order dynamic; gptq, gptq_v2 and dense "
           "can",
           format);
  }
}

}  // namespace

RunConfig resolve(RunConfig config, const ModelShape& shape) {
  auto& scale = config.method.scale_dtype;
  const bool holds_any = shape.compute_dtype == at::kFloat;
  if (scale == at::ScalarType::Undefined)
    scale = holds_any ? shape.stored_dtype : shape.compute_dtype;
  if (config.dtype == "auto") config.dtype = to_text(shape.compute_dtype);
  const bool packed =
      std::ranges::find(config.exports, "compressed-tensors") != config.exports.end();
  if (packed && !holds_any && scale != shape.compute_dtype)
    fail(
        ExitCode::config,
        "method.scale_dtype: found {}, expected auto or {} (compressed-tensors keeps scales in the "
        "model's dtype)",
        to_text(scale), to_text(shape.compute_dtype));
  if (shape.maximum_length > 0 && config.calibration.length > shape.maximum_length)
    fail(ExitCode::config,
         "calibration.length: found {}, expected at most {}, the positions that {} has",
         config.calibration.length, shape.maximum_length, config.model.string());
  return config;
}

std::optional<MethodSettings> settings_for(const RunConfig& config,
                                           const std::string& tensor_name) {
  for (const auto& expression : config.skip)
    if (matches(expression, tensor_name)) return std::nullopt;
  MethodSettings settings = config.method;
  for (const auto& entry : config.overrides) {
    if (!matches(entry.match, tensor_name)) continue;
    if (entry.skip) return std::nullopt;
    settings.bits = entry.bits.value_or(settings.bits);
    settings.group_size = entry.group_size.value_or(settings.group_size);
    settings.name = entry.method.value_or(settings.name);
    // A share takes the place of a pattern, and a pattern that of a share.
    if (entry.sparsity) settings.sparsity = {*entry.sparsity, {}};
    if (entry.pattern) settings.sparsity = {entry.sparsity.value_or(0), *entry.pattern};
    break;
  }
  if (!settings.prunes()) settings.sparsity = {};
  if (makes_queries_or_keys(tensor_name)) settings.clip = false;
  return settle(settings);
}

void check_linears(const RunConfig& config, const std::vector<NamedLinear>& linears) {
  std::map<int64_t, GroupUse> uses;
  bool any = false, quantised = false;
  for (const auto& linear : linears) {
    const auto settings = settings_for(config, linear.name);
    if (!settings) continue;
    any = true;
    quantised |= settings->quantises();
    check_exports(config, *settings, linear);
    check_layer(*settings, linear);
    if (!settings->quantises() || settings->group_size == -1) continue;
    auto& use = uses[settings->group_size];
    use.common_columns = std::gcd(use.common_columns, linear.columns);
    if (linear.columns % settings->group_size != 0) use.undivided.push_back(&linear);
  }
  for (const auto& [group_size, use] : uses)
    if (!use.undivided.empty()) refuse(group_size, use);
  const auto packed = std::ranges::find_if(
      config.exports, [](const std::string& format) { return format != "dense"; });
  if (any && !quantised && packed != config.exports.end())
    fail(ExitCode::config, "export: found {}, expected dense or []: no layer is quantised",
         *packed);
  if (!any) fail(ExitCode::config, "skip: found expressions that leave no layer to compress");
  for (size_t i = 0; i < config.overrides.size(); ++i) {
    const auto& expression = config.overrides[i].match;
    if (std::none_of(linears.begin(), linears.end(),
                     [&](const auto& linear) { return matches(expression, linear.name); }))
      fail(ExitCode::config,
           "overrides[{}].match: found \"{}\", which is in the name of no layer (a name is {})", i,
           expression, linears.empty() ? "missing" : module_of(linears[0].name));
  }
}

std::string identity(const RunConfig& config) {
  nlohmann::json settings;
  for (const auto& key : config_keys())
    if (decides_results(key.path)) settings[key.path] = key.print(config);
  const nlohmann::json fixed_shapes{{"micro_batch", config.calibration.micro_batch},
                                    {"leaf_rows", leaf_rows(config.calibration.length)},
                                    {"solve_row_tile", solve_row_tile}};
  return nlohmann::json{{"format_version", format_version},
                        {"algorithm_version", algorithm_version},
                        {"settings", settings},
                        {"fixed_shapes", fixed_shapes}}
      .dump();
}

}  // namespace selfcal
