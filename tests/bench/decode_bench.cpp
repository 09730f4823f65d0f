// The parts of a decoding step, at the shapes of a 135M-parameter Llama with 16 rows. Arguments
// after the shape: threads. GFLOP counts multiply-adds twice; compare with `fused_multiply_add`,
// the processor's peak on one thread.
#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <benchmark/benchmark.h>

#include "stages/generate/sampler.hpp"
#include "stages/kernels/cpu/few_rows.hpp"
#include "stages/kernels/ops.hpp"

using namespace selfcal;

using LinearOf = at::Tensor (*)(kernels::Context, const at::Tensor& x, const at::Tensor& weight);

/// Rows, columns, outputs, threads.
static void linear_by(benchmark::State& state, at::ScalarType dtype, LinearOf linear) {
  const int64_t rows = state.range(0), in = state.range(1), out = state.range(2);
  ThreadPool threads(static_cast<int>(state.range(3)), kernels::use_one_library_thread);
  const auto x = at::randn({rows, in}).to(dtype);
  // Enough copies of the weight that they come from memory, as in a whole model.
  std::vector<at::Tensor> weights;
  for (int64_t bytes = 0; bytes < (int64_t{128} << 20); bytes += weights.back().nbytes())
    weights.push_back(at::randn({out, in}).to(dtype));
  size_t next = 0;
  for (auto _ : state) {
    benchmark::DoNotOptimize(linear({&threads}, x, weights[next]));
    next = (next + 1) % weights.size();
  }
  const auto done = static_cast<double>(state.iterations());
  state.counters["GFLOP/s"] =
      benchmark::Counter(2e-9 * rows * in * out * done, benchmark::Counter::kIsRate);
  state.counters["GB/s"] =
      benchmark::Counter(1e-9 * weights[0].nbytes() * done, benchmark::Counter::kIsRate);
}
static void linear(benchmark::State& state, at::ScalarType dtype) {
  kernels::use_one_library_thread();
  linear_by(state, dtype,
            [](kernels::Context context, const at::Tensor& x, const at::Tensor& weight) {
              return kernels::linear_few_rows(context, x, weight);
            });
}
/// The peer.
static void library_linear(benchmark::State& state, at::ScalarType dtype) {
  at::set_num_threads(static_cast<int>(state.range(3)));
  linear_by(state, dtype, [](kernels::Context, const at::Tensor& x, const at::Tensor& weight) {
    return at::linear(x, weight);
  });
}
static void shapes(benchmark::internal::Benchmark* bench) {
  for (int64_t threads : {1, 2})
    for (int64_t rows : {1, 8, 16, 32})
      for (auto [in, out] :
           {std::pair{576, 192}, {576, 576}, {576, 1536}, {1536, 576}, {576, 49152}, {4096, 4096}})
        bench->Args({rows, in, out, threads});
  bench->UseRealTime();
}
BENCHMARK_CAPTURE(linear, bfloat16, at::kBFloat16)->Apply(shapes);
BENCHMARK_CAPTURE(library_linear, bfloat16, at::kBFloat16)->Apply(shapes);
BENCHMARK_CAPTURE(linear, float32, at::kFloat)
    ->Args({16, 576, 1536, 1})
    ->Args({16, 576, 1536, 2})
    ->UseRealTime();

static void attention(benchmark::State& state) {
  const int64_t rows = 16, kv_heads = 3, heads = 9, head_dim = 64, tokens = state.range(0),
                blocks = 8;
  kernels::use_one_library_thread();
  ThreadPool threads(static_cast<int>(state.range(1)), kernels::use_one_library_thread);
  const auto q = at::randn({rows, heads, head_dim}).to(at::kBFloat16);
  const auto cache = at::randn({2 * blocks, rows, kv_heads, tokens, head_dim}).to(at::kBFloat16);
  const auto positions = at::full({rows}, tokens - 1, at::kLong);
  int64_t next = 0;
  for (auto _ : state) {
    benchmark::DoNotOptimize(
        kernels::decode_attention({&threads}, q, positions, cache[next], cache[next + 1], 0.125));
    next = (next + 2) % (2 * blocks);
  }
  state.counters["GB/s"] =
      benchmark::Counter(2e-9 * cache[0].nbytes() * static_cast<double>(state.iterations()),
                         benchmark::Counter::kIsRate);
}
BENCHMARK(attention)->ArgsProduct({{64, 512, 2048}, {1, 2}})->UseRealTime();

/// 16 rows of a vocabulary; arguments: vocabulary, top_k, percent of top_p, threads.
static void sampler(benchmark::State& state) {
  ThreadPool threads(static_cast<int>(state.range(3)));
  const auto logits = at::randn({16, state.range(0)}) * 3;
  const SamplingRule rule{state.range(1), 0.01 * static_cast<double>(state.range(2)), {}};
  std::vector<Draw> draws;
  for (uint32_t row = 0; row < 16; ++row) draws.push_back({row, {0, 0, row, 0, 0}, 0.9});
  for (auto _ : state) benchmark::DoNotOptimize(choose_tokens({&threads}, logits, draws, rule));
}
BENCHMARK(sampler)
    ->ArgsProduct({{49152, 256000}, {0}, {100}, {1, 2}})
    ->ArgsProduct({{49152}, {50}, {95}, {1, 2}})
    ->UseRealTime();

static void parallel_for(benchmark::State& state) {
  ThreadPool threads(static_cast<int>(state.range(0)));
  for (auto _ : state)
    threads.parallel_for(state.range(1), [](int64_t i) { benchmark::DoNotOptimize(i); });
}
BENCHMARK(parallel_for)->ArgsProduct({{1, 2}, {2, 12}})->UseRealTime();

template <int bytes>
[[gnu::always_inline]] inline void multiply_and_add(benchmark::State& state) {
  using Floats = float __attribute__((vector_size(bytes)));
  constexpr int steps = 1000, lanes = bytes / sizeof(float);
  Floats sums[12] = {}, factor = Floats{} + 1.0000001f;
  for (auto _ : state) {
    for (int i = 0; i < steps; ++i) {
      asm volatile("" : "+v"(factor));
#pragma GCC unroll 12
      for (auto& sum : sums) sum = sum * factor + factor;
    }
    benchmark::DoNotOptimize(sums);
  }
  state.counters["GFLOP/s"] =
      benchmark::Counter(2e-9 * lanes * 12 * steps * static_cast<double>(state.iterations()),
                         benchmark::Counter::kIsRate);
}

__attribute__((target("avx512f"))) static void by_512_bits(benchmark::State& state) {
  multiply_and_add<64>(state);
}

__attribute__((target("avx2,fma"))) static void by_256_bits(benchmark::State& state) {
  multiply_and_add<32>(state);
}

static void fused_multiply_add(benchmark::State& state) {
  __builtin_cpu_supports("avx512f") ? by_512_bits(state) : by_256_bits(state);
}
BENCHMARK(fused_multiply_add);

BENCHMARK_MAIN();
