// What is measured of the inputs of linear layers.
#pragma once
#include "stages/solve/method.hpp"

namespace selfcal {

/// What the layers that read an input ask for.
struct TapNeeds {
  bool products = false;  // the Hessian
  bool norms = false;     // its diagonal, for layers that need no more: cheap
  bool magnitude = false;

  void add(const MethodSettings& settings) { (needs_products(settings) ? products : norms) = true; }
  void add(const TapNeeds& others) {
    products |= others.products;
    norms |= others.norms;
    magnitude |= others.magnitude;
  }
};

/// Over all leaves of the team; every rank has it. What was not asked for is undefined. The Hessian
/// is in the device's memory, the rest in the host's.
struct TapStatistics {
  at::Tensor hessian;    // X^T X / tokens, float32 [columns, columns]
  at::Tensor diagonal;   // mean x^2, float32 [columns]
  at::Tensor magnitude;  // mean |x|, float32 [columns]

  /// What a layer of these settings is solved and measured with.
  const at::Tensor& of(const MethodSettings& settings) const {
    return needs_products(settings) ? hessian : diagonal;
  }
};

}  // namespace selfcal
