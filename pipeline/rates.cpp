#include "pipeline/rates.hpp"

#include <ATen/ATen.h>
#include <c10/util/accumulate.h>

#include <algorithm>
#include <array>
#include <bit>
#include <chrono>
#include <cmath>
#include <functional>
#include <span>
#include <vector>

#include "pipeline/leaves.hpp"
#include "stages/calibrate/column_norms.hpp"
#include "stages/calibrate/hessian.hpp"
#include "stages/generate/micro_batch.hpp"
#include "stages/solve/method.hpp"

namespace selfcal {
namespace {

constexpr int64_t widest = 4096;        // a wider product is hardly faster
constexpr double largest_block = 1e11;  // flop of a leaf: larger ones are all products
constexpr int64_t most_leaves = 4;
constexpr double step_weights = 1 << 26;  // bytes far larger than the caches
constexpr double largest_step = 1 << 29;  // bytes of a block: larger ones are all products
constexpr int64_t most_solve_rows = 512;

/// That an action takes: the median of three samples of some length, after one that does not count.
double seconds_of(const std::function<void()>& action) {
  constexpr double of_a_sample = 0.03;
  constexpr int most = 16;
  const auto sample = [&](int times) {
    const auto start = std::chrono::steady_clock::now();
    for (int i = 0; i < times; ++i) action();
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  };
  const int times = std::clamp(static_cast<int>(of_a_sample / std::max(sample(1), 1e-6)), 1, most);
  std::array<double, 3> seconds{sample(times), sample(times), sample(times)};
  std::ranges::sort(seconds);
  return std::max(seconds[1], 1e-9) / times;
}

/// Work a second.
double rate(double work, const std::function<void()>& action) { return work / seconds_of(action); }

/// Deterministic, nearly normal: the speed must not depend on zeros or denormals, and how long the
/// search of a clipping range takes depends on the largest of a group.
at::Tensor values(at::IntArrayRef shape, at::ScalarType dtype, double size = 1) {
  constexpr int draws = 4;  // uniform ones, added up
  constexpr float largest = 8388608;
  at::Tensor tensor = at::empty(shape, at::kFloat);
  float* data = tensor.mutable_data_ptr<float>();
  uint32_t state = 1;
  const auto scale = static_cast<float>(2 * size / draws) / largest;
  for (int64_t i = 0; i < tensor.numel(); ++i) {
    int32_t sum = 0;
    for (int draw = 0; draw < draws; ++draw) {
      state = state * 1664525u + 1013904223u;
      sum += static_cast<int32_t>(state >> 8) - static_cast<int32_t>(largest);
    }
    data[i] = scale * static_cast<float>(sum);
  }
  return tensor.to(dtype);
}

/// The zeros that a run's forward finds in its weights, which some kernels leave out: those of a
/// pattern, where compressed layers are measured behind each other.
lanes::Pattern zeros_of(const RunConfig& config) {
  return config.propagation == Propagation::sequential ? settle(config.method).sparsity.pattern
                                                       : lanes::Pattern{};
}

/// Through which activations stay of about unit size.
at::Tensor random_weight(at::IntArrayRef shape, at::ScalarType dtype, const lanes::Pattern& zeros) {
  if (shape.size() == 1) return at::ones(shape, dtype);
  at::Tensor weight = values(shape, dtype, 1 / std::sqrt(static_cast<double>(shape.back())));
  if (zeros.of > 0 && shape.back() % zeros.of == 0)
    weight.unflatten(-1, {-1, zeros.of}).narrow(-1, 0, zeros.zeros).zero_();
  return weight;
}

BlockWeights random_weights(const BlockSpec& block, at::ScalarType dtype,
                            const lanes::Pattern& zeros = {}) {
  BlockWeights weights;
  for (const auto& [name, shape] : block.parameters)
    weights[name] = random_weight(shape, dtype, zeros);
  return weights;
}

/// Tokens of a leaf, which no micro-batch ends in.
int64_t leaf_tokens(const CalibrationSettings& calibration) {
  return std::min({leaf_rows(calibration.length), calibration.micro_batch, calibration.sequences}) *
         calibration.length;
}

/// Stage after stage for all leaves, as in a run: what a stage reads of a leaf has left the caches.
void forward_by_stages(const Block& block, const at::Tensor& leaf, int64_t leaves,
                       const BlockWeights& weights) {
  std::vector<State> states;
  for (int64_t i = 0; i < leaves; ++i) states.push_back(block.begin(leaf.clone(), weights));
  for (int stage = 0; stage < block.spec().stages; ++stage)
    for (State& state : states) state = block.advance(std::move(state), stage, weights);
  for (State& state : states) block.finish(std::move(state));
}

double measure_forward(const kernels::Context& context, const Model& model,
                       const RunConfig& config) {
  const CalibrationSettings& calibration = config.calibration;
  const auto& shape = model.shape();
  const Block& block = model.block(0);
  const int64_t length = calibration.length, rows = leaf_tokens(calibration) / length;
  const double flops =
      forward_flops(block.spec(), shape.hidden, length, static_cast<double>(rows * length));
  if (flops <= largest_block) {
    const auto weights = random_weights(block.spec(), shape.compute_dtype, zeros_of(config));
    const at::Tensor hidden = values({rows, length, shape.hidden}, shape.compute_dtype);
    const int64_t leaves = std::min(
        {most_leaves, calibration.sequences / rows, static_cast<int64_t>(largest_block / flops)});
    return rate(static_cast<double>(leaves) * flops,
                [&] { forward_by_stages(block, hidden, leaves, weights); });
  }
  const at::Tensor leaf = values({rows * length, widest}, shape.compute_dtype),
                   weight = random_weight({widest, widest}, shape.compute_dtype, zeros_of(config));
  return rate(2.0 * static_cast<double>(leaf.numel() * widest),
              [&] { kernels::linear(context, leaf, weight); });
}

/// In float32, of so much of the vocabulary that it takes some milliseconds.
double measure_logits(const kernels::Context& context, const ModelShape& shape) {
  constexpr int64_t tokens = 256, most_weights = 1 << 21;
  const int64_t words = std::clamp<int64_t>(most_weights / shape.hidden, 1, shape.vocabulary);
  const at::Tensor hidden = values({tokens, shape.hidden}, shape.compute_dtype),
                   head = values({words, shape.hidden}, shape.compute_dtype);
  return rate(2.0 * static_cast<double>(tokens * head.numel()),
              [&] { kernels::linear(context, hidden, head, {}, at::kFloat); });
}

double measure_step(const kernels::Context& context, const Model& model,
                    const CalibrationSettings& calibration) {
  const auto& shape = model.shape();
  const Block& block = model.block(0);
  int64_t entries = 0;
  for (const auto& [name, sizes] : block.spec().parameters)
    entries += c10::multiply_integers(sizes);
  const auto parameters = static_cast<double>(entries);
  const int64_t rows = calibration.micro_batch * micro_batches_at_once(calibration, shape, entries);
  const auto element = static_cast<double>(at::elementSize(shape.compute_dtype));
  if (parameters * element > largest_step) {
    const at::Tensor batch = values({rows, widest}, shape.compute_dtype),
                     weight =
                         values({static_cast<int64_t>(step_weights / element) / widest, widest},
                                shape.compute_dtype);
    return rate(static_cast<double>(weight.nbytes()),
                [&] { kernels::linear(context, batch, weight); });
  }
  // So many layers that none is in a cache when its turn comes.
  std::vector<BlockWeights> layers;
  std::vector<KeyValueCache> caches;
  while (static_cast<double>(layers.size()) * parameters * element < step_weights) {
    layers.push_back(random_weights(block.spec(), shape.compute_dtype));
    caches.push_back(model.make_cache(rows, calibration.length));
  }
  const at::Tensor input = values({rows, shape.hidden}, shape.compute_dtype),
                   positions = at::full({rows}, calibration.length / 2, at::kLong);
  return rate(static_cast<double>(layers.size()) *
                  step_bytes(parameters, shape, element, rows, calibration.length),
              [&] {
                at::Tensor hidden = input;
                for (size_t layer = 0; layer < layers.size(); ++layer)
                  hidden = block.step(hidden, positions, caches[layer], layers[layer]);
              });
}

/// The method as the job has it, but for groups that do not fit a width that was cut down.
MethodSettings method_for(const RunConfig& config, int64_t columns) {
  MethodSettings method = settle(config.method);
  if (method.group_size > 0 && columns % method.group_size != 0) method.group_size = -1;
  if (method.sparsity.by_outliers) method.sparsity = {method.sparsity.share, {}};
  return method;
}

WidthRates measure_width(const kernels::Context& context, const RunConfig& config,
                         at::ScalarType dtype, int64_t columns, int64_t rows) {
  const int64_t tokens = leaf_tokens(config.calibration);
  const at::Tensor leaf = values({tokens, columns}, dtype);
  const auto squared = static_cast<double>(columns * columns);
  const MethodSettings settings = method_for(config, columns);
  at::Tensor hessian;
  const auto measure_products = [&](int leaves) {
    HessianAccumulator accumulator(columns, context);
    for (int i = 0; i < leaves; ++i) accumulator.observe(leaf);
    for (int i = 0; i < leaves; ++i) accumulator.add(leaf);
    hessian = accumulator.finish(std::max(leaves, 1) * tokens);
  };
  const auto measure_norms = [&](int leaves) {
    ColumnNorms norms(columns, context);
    for (int i = 0; i < leaves; ++i) norms.add(leaf);
    norms.count();
    hessian = norms.finish(std::max(leaves, 1) * tokens).square_();
  };
  const auto seconds_of_leaves = [&](int leaves) {
    return seconds_of(
        [&] { needs_products(settings) ? measure_products(leaves) : measure_norms(leaves); });
  };
  WidthRates rates;
  const double none = seconds_of_leaves(0), two = seconds_of_leaves(2);
  rates.statistics = static_cast<double>(tokens) * squared / std::max((two - none) / 2, two / 100);
  rates.sums = squared / none;
  const auto method = make_method(settings, context);
  Factor factor;
  rates.factorise =
      rate(squared * static_cast<double>(columns), [&] { factor = method->factorise(hessian); });
  const auto seconds_of_rows = [&](int64_t count) {
    const at::Tensor weight = values({count, columns}, dtype);
    return seconds_of([&] {
      method->controls(weight, hessian, dtype);
      method->solve(weight, hessian, factor, dtype);
    });
  };
  const int64_t few = rows / 4;
  const double all_rows = seconds_of_rows(rows), few_rows = few > 0 ? seconds_of_rows(few) : 0;
  const double of_rows = std::clamp(
      (all_rows - few_rows) * static_cast<double>(rows) / static_cast<double>(rows - few),
      all_rows / 2, all_rows);
  rates.solve = static_cast<double>(rows) * squared / of_rows;
  rates.panels = squared / std::max(all_rows - of_rows, 1e-9);
  return rates;
}

}  // namespace

const WidthRates& HardwareRates::at(int64_t columns) const {
  const auto found = by_width.find(std::min(columns, widest));
  return found == by_width.end() ? wide : found->second;
}

double step_bytes(double block_parameters, const ModelShape& shape, double element_bytes,
                  int64_t rows, int64_t length) {
  const auto cache = static_cast<double>(rows * length * shape.key_value_heads * shape.head_dim);
  return (block_parameters + cache) * element_bytes;
}

double forward_flops(const BlockSpec& block, int64_t hidden, int64_t length, double tokens) {
  double weights = 0;
  for (const auto& linear : block.linears)
    weights += static_cast<double>(linear.rows * linear.columns);
  return 2 * tokens * (weights + static_cast<double>(length * hidden));
}

HardwareRates measure_rates(const kernels::Context& context, const Model& model,
                            const RunConfig& config) {
  const at::ScalarType dtype = model.shape().compute_dtype;
  const BlockSpec& block = model.block(0).spec();
  HardwareRates rates;
  rates.threads = context.threads->size();
  rates.forward = measure_forward(context, model, config);
  std::map<int64_t, int64_t> rows;  // by width: the most of a matrix
  for (const auto& linear : block.linears) {
    int64_t& most = rows[std::min(linear.columns, widest)];
    most = std::max(most, std::min(linear.rows, most_solve_rows));
  }
  for (const auto& [columns, most] : rows)
    rates.wide = rates.by_width[columns] = measure_width(context, config, dtype, columns, most);

  rates.decode = measure_step(context, model, config.calibration);
  rates.logits = measure_logits(context, model.shape());
  return rates;
}

HardwareRates slowest(const Communicator& ranks, HardwareRates rates) {
  std::vector<double*> all{&rates.forward, &rates.decode, &rates.logits};
  const auto list = [&](WidthRates& width) {
    all.insert(all.end(),
               {&width.statistics, &width.sums, &width.factorise, &width.solve, &width.panels});
  };
  list(rates.wide);
  for (auto& [columns, width] : rates.by_width) list(width);
  // The bits of positive numbers are in the order of the numbers.
  std::vector<int64_t> bits;
  for (const double* rate : all) bits.push_back(std::bit_cast<int64_t>(*rate));
  ranks.all_reduce(std::span(bits), ReduceOp::min);
  for (size_t i = 0; i < all.size(); ++i) *all[i] = std::bit_cast<double>(bits[i]);
  return rates;
}

}  // namespace selfcal
