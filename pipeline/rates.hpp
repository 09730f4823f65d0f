// How fast this machine is at what a run does most, measured through the very code that runs.
#pragma once
#include <cstdint>

#include "stages/kernels/ops.hpp"

namespace selfcal {

/// Rates of all threads of the context it was measured with. Where the work of a step is not one
/// product, its rate is in "useful" operations: those that the formulas of the plan count.
struct HardwareRates {
  int threads = 1;
  double forward = 0;     // flop/s of linear layers over a leaf
  double decode = 0;      // weight bytes/s of linear layers over the rows of a micro-batch
  double statistics = 0;  // tokens x columns^2 a second
  double factorise = 0;   // columns^3 a second
  double solve = 0;       // rows x columns^2 a second
};

/// Takes about a second. `dtype`: what the model computes in; `micro_batch`: rows of a decoding
/// step; `columns`: of the inputs, as wide as the model's but no wider than calibration_columns().
/// Independent.
HardwareRates measure_rates(const kernels::Context& context, at::ScalarType dtype,
                            int64_t micro_batch, int64_t columns);

/// The width to measure with for a model whose widest input is this: a product, a factor and a
/// solve are slower where they are narrow.
int64_t calibration_columns(int64_t widest_input);

}  // namespace selfcal
