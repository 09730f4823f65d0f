// Settings of the compression methods.
#pragma once
#include <ATen/core/Tensor.h>

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <utility>

#include "stages/lanes/lanes.hpp"

namespace selfcal {

enum class MethodName { gptq, sparsegpt, awq, wanda, magnitude, nearest };
inline constexpr std::array<std::pair<const char*, MethodName>, 6> method_names{
    {{"gptq", MethodName::gptq},
     {"sparsegpt", MethodName::sparsegpt},
     {"awq", MethodName::awq},
     {"wanda", MethodName::wanda},
     {"magnitude", MethodName::magnitude},
     {"nearest", MethodName::nearest}}};
/// "gptq" ...
std::string to_text(MethodName name);
/// Whether the method sets weights to zero.
constexpr bool prunes(MethodName name) {
  return name == MethodName::sparsegpt || name == MethodName::wanda ||
         name == MethodName::magnitude;
}

enum class ActOrder { automatic, none, static_order, dynamic_order };
/// Of settings that may be left to the method, or to the run.
enum class AutoFlag { automatic, no, yes };
enum class GroupParameters { published, current };
enum class ScaleLoss { linear, module };

/// What the errors of rows are measured with: H, or its diagonal alone, which takes the columns of
/// the input for uncorrelated.
enum class ErrorMeasure { automatic, hessian, norms };

/// What a pruner takes away: a share of the weights, or some of every run of columns of a row.
struct Sparsity {
  double share = 0;          // 0 <= share < 1; SparseGPT: of 128 columns of the matrix at a time;
                             // Wanda, magnitude: of each row
  lanes::Pattern pattern;    // instead of a share
  bool by_outliers = false;  // the share is the mean, and each block's depends on its outliers
  struct Owl {
    double m = 5;          // outliers are so many times as large as the mean
    double lambda = 0.08;  // shares lie in a range of twice this
    bool operator==(const Owl&) const = default;
  } owl = {};
  bool any() const { return share > 0 || pattern.of > 0; }
  bool operator==(const Sparsity&) const = default;
};

/// "2:4": two zeros of four; nothing where the text is no pattern with 1 <= zeros < of <= 64.
std::optional<lanes::Pattern> parse_pattern(const std::string& text);

/// Of weights that are pruned only.
inline constexpr int unquantised_bits = 16;

/// Everything about a method that changes its results; part of a job's identity.
struct MethodSettings {
  MethodName name = MethodName::gptq;
  int bits = 4;              // 2..8; 16: weights are pruned and stay as they are; 0: see settle
  int64_t group_size = 128;  // -1: a whole row
  bool symmetric = true;
  ActOrder act_order = ActOrder::static_order;
  AutoFlag static_groups = AutoFlag::yes;
  AutoFlag mse = AutoFlag::no;  // search the clipping range (published grid)
  double damping = 0.01;        // fraction of mean(diag H)
  int64_t block_size = 128;     // columns between lazy updates
  at::ScalarType scale_dtype = at::kFloat;
  GroupParameters group_parameters = GroupParameters::current;
  Sparsity sparsity;
  bool duo_scaling = true;  // AWQ: scales from the weights too, not from the inputs alone
  bool clip = true;         // AWQ: cut off large weights where that helps
  ErrorMeasure error_measure = ErrorMeasure::hessian;
  ScaleLoss scale_loss = ScaleLoss::linear;  // AWQ: whose outputs the search of scales compares

  bool prunes() const { return selfcal::prunes(name); }
  bool quantises() const { return bits != unquantised_bits; }
  bool operator==(const MethodSettings&) const = default;
};

/// Fills what is left to the method: bits 0 become 4, or 16 for a pruner; static_groups automatic
/// becomes no where SparseGPT prunes a share and quantises with the columns in their order, else
/// yes; act_order automatic becomes static for GPTQ and for SparseGPT of an n:m pattern, with
/// static groups if they quantise, else none; mse automatic becomes yes with 4 bits or fewer for
/// GPTQ and where a pattern is pruned before scales are found, else no; error_measure automatic
/// becomes norms for Wanda, which solves with them, else hessian. Idempotent.
MethodSettings settle(MethodSettings settings);

/// Whether the scales of SparseGPT that also quantises are those of the weights that pruning the
/// pattern alone would leave, found by a solve of its own: those that stay make good for those that
/// go, and grow past the range that all had. As published scales are those of all weights.
bool prunes_before_scales(const MethodSettings& settings);

/// Whether the method feeds errors forward, and so needs a factor of the Hessian.
constexpr bool compensates(MethodName name) {
  return name == MethodName::gptq || name == MethodName::sparsegpt;
}
/// Whether settled settings need more of the Hessian than its diagonal, to solve or to measure.
inline bool needs_products(const MethodSettings& settings) {
  return compensates(settings.name) || settings.name == MethodName::awq ||
         settings.error_measure != ErrorMeasure::norms;
}

/// Fails with ExitCode::config where a setting is outside of its range.
void check_settings(const MethodSettings& settings);

}  // namespace selfcal
