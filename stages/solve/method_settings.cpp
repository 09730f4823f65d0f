#include "stages/solve/method_settings.hpp"

#include <charconv>

#include "base/error.hpp"

namespace selfcal {
namespace {

bool is_valid(const lanes::Pattern& pattern) {
  return pattern.zeros >= 1 && pattern.of > pattern.zeros && pattern.of <= lanes::Pattern::longest;
}

/// Scales that are found on the way are found between runs of a pattern.
bool finds_scales_between_columns(const MethodSettings& settings) {
  const bool dynamic =
      settings.act_order == ActOrder::dynamic_order ||
      (settings.static_groups == AutoFlag::no && settings.act_order == ActOrder::none);
  return settings.name == MethodName::sparsegpt && settings.quantises() &&
         settings.group_size > 0 && dynamic &&
         settings.group_parameters == GroupParameters::current;
}

void check_sparsity(const MethodSettings& settings) {
  const double share = settings.sparsity.share;
  const lanes::Pattern& pattern = settings.sparsity.pattern;
  const std::string name = to_text(settings.name);
  if (!settings.prunes()) {
    if (settings.sparsity.any())
      fail(ExitCode::config,
           "{} does not prune: expected sparsegpt, wanda or magnitude where sparsity or pattern is "
           "set",
           name);
    return;
  }
  if (!settings.sparsity.any())
    fail(ExitCode::config, "{} needs sparsity, as in 0.5, or pattern, as in 2:4", name);
  if (!(share >= 0 && share < 1))
    fail(ExitCode::config, "sparsity is {}, expected 0 up to 1, without 1", share);
  if (settings.sparsity.by_outliers) {
    if (share == 0)
      fail(ExitCode::config, "layer_sparsity is owl, expected a share of zeros (sparsity)");
    const double range = 2 * settings.sparsity.owl.lambda;
    if (!(share - range > 0 && share + range < 1))
      fail(ExitCode::config,
           "sparsity is {} and owl.lambda {}: a block could get {:.3g} or {:.3g}, expected more "
           "than 0 and less than 1",
           share, settings.sparsity.owl.lambda, share - range, share + range);
  }
  if (pattern == lanes::Pattern{}) return;
  if (share > 0) fail(ExitCode::config, "sparsity and pattern are both set, expected one of them");
  if (!is_valid(pattern))
    fail(ExitCode::config, "pattern is {}:{}, expected zeros:of with 1 <= zeros < of <= {}",
         pattern.zeros, pattern.of, lanes::Pattern::longest);
  if (settings.name == MethodName::sparsegpt && settings.block_size % pattern.of != 0)
    fail(ExitCode::config, "block_size is {}, expected a multiple of {} (pattern is {}:{})",
         settings.block_size, pattern.of, pattern.zeros, pattern.of);
  if (finds_scales_between_columns(settings) && settings.group_size % pattern.of != 0)
    fail(ExitCode::config,
         "group_size is {}, expected a multiple of {} (pattern is {}:{}) where groups are dynamic: "
         "a group would begin within a run",
         settings.group_size, pattern.of, pattern.zeros, pattern.of);
}

}  // namespace

std::string to_text(MethodName name) {
  for (const auto& [text, method] : method_names)
    if (method == name) return text;
  fail(ExitCode::internal, "unknown method");
}

std::optional<lanes::Pattern> parse_pattern(const std::string& text) {
  lanes::Pattern pattern;
  const char* end = text.data() + text.size();
  const auto zeros = std::from_chars(text.data(), end, pattern.zeros);
  if (zeros.ec != std::errc() || zeros.ptr == end || *zeros.ptr != ':') return std::nullopt;
  const auto of = std::from_chars(zeros.ptr + 1, end, pattern.of);
  if (of.ec != std::errc() || of.ptr != end || !is_valid(pattern)) return std::nullopt;
  return pattern;
}

MethodSettings settle(MethodSettings settings) {
  if (settings.bits == 0) settings.bits = settings.prunes() ? unquantised_bits : 4;
  if (settings.static_groups == AutoFlag::automatic) {
    // Weights that make good for pruned ones grow beyond a range that was set before, but where it
    // is that of the pruned weights (prunes_before_scales).
    const bool grow = settings.name == MethodName::sparsegpt && settings.quantises() &&
                      settings.act_order != ActOrder::static_order &&
                      settings.sparsity.pattern.of == 0;
    settings.static_groups = grow ? AutoFlag::no : AutoFlag::yes;
  }
  const bool prunes_runs =
      settings.name == MethodName::sparsegpt && settings.sparsity.pattern.of > 0;
  if (settings.act_order == ActOrder::automatic) {
    const bool orders = (prunes_runs || settings.name == MethodName::gptq) &&
                        (settings.static_groups == AutoFlag::yes || !settings.quantises());
    settings.act_order = orders ? ActOrder::static_order : ActOrder::none;
  }
  if (settings.mse == AutoFlag::automatic) {
    constexpr int few_bits = 4;  // with more there is little to gain
    const bool searches = settings.bits <= few_bits &&
                          (settings.name == MethodName::gptq || prunes_before_scales(settings));
    settings.mse = searches ? AutoFlag::yes : AutoFlag::no;
  }
  if (settings.error_measure == ErrorMeasure::automatic)
    settings.error_measure =
        settings.name == MethodName::wanda ? ErrorMeasure::norms : ErrorMeasure::hessian;
  return settings;
}

bool prunes_before_scales(const MethodSettings& settings) {
  const bool of_positions = settings.act_order == ActOrder::dynamic_order;
  return settings.name == MethodName::sparsegpt && settings.quantises() &&
         settings.sparsity.pattern.of > 0 &&
         settings.group_parameters == GroupParameters::current &&
         (settings.group_size == -1 || (settings.static_groups == AutoFlag::yes && !of_positions));
}

void check_settings(const MethodSettings& settings) {
  const bool only_prunes = settings.prunes() && !settings.quantises();
  if (!only_prunes && (settings.bits < 2 || settings.bits > 8))
    fail(ExitCode::config, "bits is {}, expected 2 to 8{}", settings.bits,
         settings.prunes() ? " or 16" : "");
  if (settings.act_order == ActOrder::automatic ||
      settings.error_measure == ErrorMeasure::automatic ||
      settings.static_groups == AutoFlag::automatic || settings.mse == AutoFlag::automatic)
    fail(ExitCode::internal, "settings are left to the method, expected settled ones");
  if (settings.act_order != ActOrder::none && settings.prunes() &&
      settings.name != MethodName::sparsegpt)
    fail(ExitCode::config, "{} takes the columns in their order: expected act_order auto or none",
         to_text(settings.name));
  if (settings.act_order == ActOrder::dynamic_order && only_prunes)
    fail(ExitCode::config,
         "act_order is dynamic, expected static or none where nothing is quantised in groups");
  check_sparsity(settings);
  if (settings.group_size != -1 && settings.group_size < 1) {
    fail(ExitCode::config, "group_size is {}, expected -1 or at least 1", settings.group_size);
  }
  if (settings.block_size < 1)
    fail(ExitCode::config, "block_size is {}, expected at least 1", settings.block_size);
  if (!(settings.damping >= 0 && settings.damping <= 1)) {
    fail(ExitCode::config, "damping is {}, expected 0 to 1", settings.damping);
  }
  if (settings.scale_dtype != at::kFloat && settings.scale_dtype != at::kBFloat16 &&
      settings.scale_dtype != at::kHalf)
    fail(ExitCode::config, "scale_dtype is {}, expected float32, bfloat16 or float16",
         toString(settings.scale_dtype));
}

}  // namespace selfcal
