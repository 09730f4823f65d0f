// Settings of the compression methods, and the interface that all of them are used by.
#pragma once
#include <ATen/core/Tensor.h>

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "stages/kernels/ops.hpp"
#include "storage/layer_file.hpp"

namespace selfcal {

enum class MethodName { gptq, nearest };
enum class ActOrder { none, static_order, dynamic_order };
enum class GroupParameters { published, current };

/// Everything about a method that changes its results; part of a job's identity.
struct MethodSettings {
  MethodName name = MethodName::gptq;
  int bits = 4;              // 2..8
  int64_t group_size = 128;  // -1: a whole row
  bool symmetric = true;
  ActOrder act_order = ActOrder::static_order;
  bool static_groups = true;
  bool mse = false;          // search the clipping range (published grid)
  double damping = 0.01;     // fraction of mean(diag H)
  int64_t block_size = 128;  // columns between lazy updates
  at::ScalarType scale_dtype = at::kFloat;
  GroupParameters group_parameters = GroupParameters::current;
};

/// What a method needs once per Hessian: computed by one rank, broadcast as tensors, used by all
/// that solve rows.
struct Factor {
  at::Tensor
      upper;  // float32 [columns, columns]: U with U^T U = H^-1 (permuted where act_order asks)
  at::Tensor permutation;  // int64 [columns]; position -> original column
  at::Tensor dead;         // uint8 [columns]: 1 where diag(H) is zero (original order)
  double damping = 0;      // fraction that was used in the end
  int retries = 0;         // times that the damping was raised
};

/// Rows of a weight matrix, solved. Rows are independent given the factor, so any split into rows
/// gives the same bits.
struct SolvedRows {
  CompressedLinear linear;   // tensors of these rows only; weight in `weight_dtype`
  at::Tensor error;          // float64 [rows]: e H e^T of the returned weight
  at::Tensor nearest_error;  // float64 [rows]: the same of the data-free control
  at::Tensor reference;      // float64 [rows]: w H w^T
};

class Method {
 public:
  virtual ~Method() = default;
  /// H: float32 [columns, columns], mean over tokens of x x^T, finite and symmetric. Independent. A
  /// Hessian that is not finite, or not positive definite at any damping up to 1, is
  /// ExitCode::data.
  virtual Factor factorise(const at::Tensor& hessian) const = 0;
  /// weight: [rows, columns] any float dtype; hessian as given to factorise.
  virtual SolvedRows solve(const at::Tensor& weight, const at::Tensor& hessian,
                           const Factor& factor, at::ScalarType weight_dtype) const = 0;
};

/// Rows of one tile of a solve; part of the numerical contract (a tile's rows never change with the
/// ranks).
inline constexpr int64_t solve_row_tile = 64;

std::unique_ptr<Method> make_method(const MethodSettings& settings, kernels::Context context);

}  // namespace selfcal
