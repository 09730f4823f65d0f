// The Hessian of a leaf (2048 tokens), beside the library's full float32 product. Arguments:
// columns, threads.
#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <benchmark/benchmark.h>

#include "stages/calibrate/hessian.hpp"

namespace selfcal {
namespace {

constexpr int64_t tokens = 2048;

struct Threads {
  explicit Threads(int64_t count) : pool(int(count), kernels::use_one_library_thread) {
    kernels::use_one_library_thread();
  }
  kernels::Context context() { return {&pool}; }
  ThreadPool pool;
};

at::Tensor leaf(int64_t columns, at::ScalarType dtype) {
  at::manual_seed(0);
  return at::randn({tokens, columns}).to(dtype);
}

void count_products(benchmark::State& state) {
  // Of the full product, so that rates compare.
  state.counters["GF/s"] = benchmark::Counter(
      2e-9 * tokens * double(state.range(0)) * state.range(0) * double(state.iterations()),
      benchmark::Counter::kIsRate);
}

template <at::ScalarType dtype>
void accumulate(benchmark::State& state) {
  Threads threads(state.range(1));
  const at::Tensor x = leaf(state.range(0), dtype);
  HessianAccumulator accumulator(state.range(0), threads.context());
  accumulator.observe(x);
  for (auto _ : state) accumulator.add(x);
  count_products(state);
}

template <at::ScalarType dtype>
void observe(benchmark::State& state) {
  Threads threads(state.range(1));
  const at::Tensor x = leaf(state.range(0), dtype);
  HessianAccumulator accumulator(state.range(0), threads.context());
  for (auto _ : state) accumulator.observe(x);
}

/// What a Hessian takes whatever the tokens. GB/s: its sums written and read, and itself written.
void make_and_finish(benchmark::State& state) {
  Threads threads(state.range(1));
  for (auto _ : state) HessianAccumulator(state.range(0), threads.context()).finish(1);
  state.counters["GB/s"] = benchmark::Counter(
      12e-9 * double(state.range(0)) * state.range(0) * double(state.iterations()),
      benchmark::Counter::kIsRate);
}

void full_product(benchmark::State& state) {
  at::set_num_threads(int(state.range(1)));
  const at::Tensor x = leaf(state.range(0), at::kFloat);
  at::Tensor h = at::zeros({state.range(0), state.range(0)});
  for (auto _ : state) h.addmm_(x.t(), x);
  at::set_num_threads(1);
  count_products(state);
}

void sizes(benchmark::internal::Benchmark* bench) {
  for (const int64_t threads : {1, 2}) {
    for (const int64_t columns : {576, 1536, 2048, 4096}) bench->Args({columns, threads});
  }
  bench->UseRealTime()->Unit(benchmark::kMillisecond);
}

BENCHMARK(full_product)->Apply(sizes);
BENCHMARK_TEMPLATE(accumulate, at::kFloat)->Apply(sizes);
BENCHMARK_TEMPLATE(accumulate, at::kBFloat16)->Apply(sizes);
BENCHMARK(make_and_finish)->Apply(sizes)->Args({14336, 1})->Args({14336, 2});
BENCHMARK_TEMPLATE(observe, at::kFloat)->Apply(sizes);
BENCHMARK_TEMPLATE(observe, at::kBFloat16)->Apply(sizes);

}  // namespace
}  // namespace selfcal

BENCHMARK_MAIN();
