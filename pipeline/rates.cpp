#include "pipeline/rates.hpp"

#include <ATen/ATen.h>

#include <algorithm>
#include <chrono>
#include <functional>

#include "stages/calibrate/hessian.hpp"
#include "stages/solve/method.hpp"

namespace selfcal {
namespace {

constexpr int64_t leaf_tokens = 2048;
constexpr int64_t decode_weights = 1 << 25;  // a weight far larger than the caches
constexpr int64_t solve_rows = 512;

/// Work a second: the best of three, after one that does not count.
double rate(double work, const std::function<void()>& action) {
  action();
  double best = 1e30;
  for (int time = 0; time < 3; ++time) {
    const auto start = std::chrono::steady_clock::now();
    action();
    const std::chrono::duration<double> taken = std::chrono::steady_clock::now() - start;
    best = std::min(best, taken.count());
  }
  return work / std::max(best, 1e-9);
}

/// Deterministic values of about unit size: the speed must not depend on zeros or denormals.
at::Tensor values(at::IntArrayRef shape, at::ScalarType dtype) {
  at::Tensor tensor = at::empty(shape, at::kFloat);
  float* data = tensor.mutable_data_ptr<float>();
  uint32_t state = 1;
  for (int64_t i = 0; i < tensor.numel(); ++i) {
    state = state * 1664525u + 1013904223u;
    data[i] = static_cast<float>(state >> 8) / 8388608.0f - 1.0f;
  }
  return tensor.to(dtype);
}

}  // namespace

int64_t calibration_columns(int64_t widest_input) {
  return std::clamp<int64_t>(widest_input / 64 * 64, 64, 2048);
}

HardwareRates measure_rates(const kernels::Context& context, at::ScalarType dtype,
                            int64_t micro_batch, int64_t columns) {
  HardwareRates rates;
  rates.threads = context.threads->size();
  const at::Tensor leaf = values({leaf_tokens, columns}, dtype),
                   weight = values({columns, columns}, dtype);
  rates.forward =
      rate(2.0 * leaf_tokens * columns * columns, [&] { kernels::linear(context, leaf, weight); });

  at::Tensor hessian;
  rates.statistics = rate(static_cast<double>(leaf_tokens * columns * columns), [&] {
    HessianAccumulator accumulator(columns, context);
    accumulator.observe(leaf);
    accumulator.add(leaf);
    hessian = accumulator.finish(leaf_tokens);
  });

  MethodSettings settings;
  settings.group_size = columns / 8;
  const auto method = make_method(settings, context);
  Factor factor;
  rates.factorise = rate(static_cast<double>(columns * columns * columns),
                         [&] { factor = method->factorise(hessian); });
  const at::Tensor rows = values({solve_rows, columns}, dtype);
  rates.solve = rate(static_cast<double>(solve_rows * columns * columns), [&] {
    method->controls(rows, hessian, dtype);
    method->solve(rows, hessian, factor, dtype);
  });

  const at::Tensor batch = values({micro_batch, columns}, dtype);
  const at::Tensor wide = weight.repeat({decode_weights / (columns * columns), 1});
  rates.decode =
      rate(static_cast<double>(wide.nbytes()), [&] { kernels::linear(context, batch, wide); });
  return rates;
}

}  // namespace selfcal
