// Settings of the compression methods, and the interface that all of them are used by.
#pragma once
#include <ATen/core/Tensor.h>

#include <array>
#include <compare>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "stages/kernels/ops.hpp"
#include "stages/lanes/lanes.hpp"
#include "storage/layer_file.hpp"

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
enum class StaticGroups { automatic, no, yes };
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
  StaticGroups static_groups = StaticGroups::yes;
  bool mse = false;          // search the clipping range (published grid)
  double damping = 0.01;     // fraction of mean(diag H)
  int64_t block_size = 128;  // columns between lazy updates
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
/// becomes no where SparseGPT quantises with the columns in their order, else yes; act_order
/// automatic becomes static for GPTQ with static groups and for SparseGPT that only prunes an n:m
/// pattern, else none; error_measure automatic becomes norms for Wanda, which solves with them,
/// else hessian. Idempotent.
MethodSettings settle(MethodSettings settings);

/// Whether the method feeds errors forward, and so needs a factor of the Hessian.
constexpr bool compensates(MethodName name) {
  return name == MethodName::gptq || name == MethodName::sparsegpt;
}
/// Whether settled settings need more of the Hessian than its diagonal, to solve or to measure.
inline bool needs_products(const MethodSettings& settings) {
  return compensates(settings.name) || settings.name == MethodName::awq ||
         settings.error_measure != ErrorMeasure::norms;
}
/// The diagonal of a Hessian, or what is its diagonal already.
inline at::Tensor mean_squares(const at::Tensor& hessian) {
  return hessian.dim() == 1 ? hessian : hessian.diagonal();
}

/// What decides the factor of a Hessian: methods and settings that agree here share it.
struct FactorSettings {
  bool inverts = false;  // else there is none to find
  double damping = 0;
  int64_t ordered_run = 0;  // columns that move together into falling order of their diagonal; 0:
                            // all stay
  auto operator<=>(const FactorSettings&) const = default;
};
FactorSettings factor_settings(const MethodSettings& settings);

/// What a method needs once per Hessian: computed by one rank, broadcast as tensors, used by all
/// that solve rows.
struct Factor {
  at::Tensor upper;  // float32 [columns, columns]: U with U^T U = (c H)^-1 (permuted where
                     // act_order asks), c the power of four that brings H's mean diagonal near 1;
                     // in the memory that the method solves in, the rest in the host's
  at::Tensor permutation;  // int64 [columns]; position -> original column
  at::Tensor dead;         // uint8 [columns]: 1 where diag(H) is zero (original order)
  double damping = 0;      // fraction that was used in the end
  int retries = 0;         // times that the damping was raised
};

/// Rows of a weight matrix, solved. Any split into rows gives the same bits.
struct SolvedRows {
  CompressedLinear linear;  // tensors of these rows only; weight in `weight_dtype`
  at::Tensor error;         // float64 [rows]: e H e^T of the returned weight
};

/// What the errors of rows are compared with; needs no factor.
struct RowControls {
  at::Tensor reference;      // float64 [rows]: w H w^T
  at::Tensor nearest_error;  // float64 [rows]: e H e^T of the data-free control
};

/// The ranks that hold the rows of one matrix, for methods whose rows depend on each other. By
/// default one rank holds all.
struct RowTeam {
  /// Runs `local` on every rank; if it throws on one, all throw. Collective.
  std::function<void(const std::function<void()>& local)> run = [](const auto& local) { local(); };
  /// Adds up over the ranks, in place. Collective.
  std::function<void(std::span<int64_t>)> sum = [](std::span<int64_t>) {};
};

/// Rows of one tile of a solve on the host.
inline constexpr int64_t solve_row_tile = 64;

class Method {
 public:
  virtual ~Method() = default;
  /// H: float32 [columns, columns], mean over tokens of x x^T, finite and symmetric, in the host's
  /// memory or the device's; its diagonal [columns] is enough where the settings do not need
  /// products. Independent. A Hessian that is not finite, or not positive definite at any damping
  /// up to 1, is ExitCode::data.
  virtual Factor factorise(const at::Tensor& hessian) const = 0;
  /// weight: [rows, columns] any float dtype; hessian as given to factorise. A row's figures do not
  /// depend on the others.
  virtual RowControls controls(const at::Tensor& weight, const at::Tensor& hessian,
                               at::ScalarType weight_dtype) const = 0;
  /// Whether a matrix is solved by all its ranks together: solve() is then collective over the
  /// RowTeam, and a rank may hold no rows. Else rows are independent and the team is not used.
  virtual bool rows_meet() const { return false; }
  /// Where solve() takes Hessian and factor from; what is elsewhere it copies at each call.
  virtual at::Device memory() const { return at::kCPU; }
  /// Rows of a tile: ranks are dealt whole ones.
  virtual int64_t row_tile() const { return lanes::rows; }
  /// weight: as given to controls, in the host's memory or that of memory(); hessian as given to
  /// factorise. Result in the host's memory.
  virtual SolvedRows solve(const at::Tensor& weight, const at::Tensor& hessian,
                           const Factor& factor, at::ScalarType weight_dtype,
                           const RowTeam& team = {}) const = 0;
};

/// Solves in the context's device where that takes the settings, else on the host's threads.
std::unique_ptr<Method> make_method(const MethodSettings& settings, kernels::Context context);

}  // namespace selfcal
