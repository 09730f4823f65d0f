// The interface that all compression methods are used by.
#pragma once
#include <ATen/core/Tensor.h>

#include <compare>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>

#include "stages/kernels/ops.hpp"
#include "stages/lanes/lanes.hpp"
#include "stages/solve/method_settings.hpp"
#include "storage/layer_file.hpp"

namespace selfcal {

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
  auto operator<=>(const FactorSettings&) const = default;  // NOLINT(modernize-use-nullptr)
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
