// Factor, solve and errors of GPTQ or 2:4 on a GPU, with the rows' way there and back. Arguments:
// rows, columns. Says so where there is no GPU; has not run on one yet.
#include <ATen/ATen.h>
#include <benchmark/benchmark.h>

#include "base/gpu_module.hpp"
#include "stages/solve/cuda/solve_kernels.hpp"
#include "stages/solve/method.hpp"

namespace selfcal {
namespace {

void solve_on_gpu(benchmark::State& state, MethodSettings settings) {
  const GpuModule module = GpuModule::load(SELFCAL_GPU_MODULE);
  if (!module.is_present()) return state.SkipWithError(module.absence().c_str());
  load_cuda_tensors();
  const auto gpu = module.make<SolveKernels>(cuda_solve_kernels);
  const int64_t rows = state.range(0), columns = state.range(1);
  ThreadPool pool(2, kernels::use_one_library_thread);
  const kernels::Context context{&pool, {at::kCUDA, &kernels::library_operations, gpu.get()}};
  kernels::use_one_library_thread();
  at::manual_seed(0);
  const at::Tensor x = at::randn({2 * columns, columns}) + at::randn({2 * columns, 1});
  const at::Tensor h = x.t().mm(x) / (2.0 * double(columns));
  const at::Tensor hessian = ((h + h.t()) / 2).contiguous().to(at::kCUDA);
  settings.act_order = ActOrder::none;
  const auto method = make_method(settings, context);
  const at::Tensor weight = at::randn({rows, columns}) * 0.05;
  method->solve(weight, hessian, method->factorise(hessian), at::kFloat);  // loads the kernels
  for (auto _ : state) {
    const Factor factor = method->factorise(hessian);
    benchmark::DoNotOptimize(method->solve(weight, hessian, factor, at::kFloat));
  }
}

void gptq(benchmark::State& state) { solve_on_gpu(state, {}); }

void pattern_2_4(benchmark::State& state) {
  MethodSettings settings;
  settings.name = MethodName::sparsegpt;
  settings.sparsity.pattern = {2, 4};
  settings.bits = unquantised_bits;
  solve_on_gpu(state, settings);
}

BENCHMARK(gptq)->Args({2048, 2048})->Args({4096, 4096})->Args({14336, 4096});
BENCHMARK(pattern_2_4)->Args({4096, 4096});

}  // namespace
}  // namespace selfcal

BENCHMARK_MAIN();
