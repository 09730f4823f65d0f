// The solver, beside the published loop and beside the products that it cannot do without.
// Arguments: rows, columns, threads. Compare figures of one run only.
#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <benchmark/benchmark.h>

#include <map>

#include "stages/solve/factor.hpp"
#include "stages/solve/gptq.hpp"
#include "stages/solve/quadratic_form.hpp"

namespace selfcal {
namespace {

struct Threads {
  explicit Threads(int64_t count) : pool(int(count), kernels::use_one_library_thread) {
    kernels::use_one_library_thread();
  }
  kernels::Context context() { return {&pool}; }
  ThreadPool pool;
};

struct Problem {
  at::Tensor weight, hessian;
  Factor factor;
};

MethodSettings settings() {
  MethodSettings settings;
  settings.act_order = ActOrder::none;
  settings.symmetric = false;
  return settings;
}

const Problem& problem(int64_t rows, int64_t columns) {
  static std::map<std::pair<int64_t, int64_t>, Problem> problems;
  auto [at, missing] = problems.try_emplace({rows, columns});
  if (missing) {
    Threads threads(2);
    at::manual_seed(0);
    const at::Tensor x = at::randn({2 * columns, columns}) + at::randn({2 * columns, 1});
    const at::Tensor h = x.t().mm(x) / (2.0 * double(columns));
    at->second.weight = at::randn({rows, columns}) * 0.05;
    at->second.hessian = ((h + h.t()) / 2).contiguous();
    at->second.factor = factorise_inverse(at->second.hessian, 0.01, 0, threads.context());
  }
  return at->second;
}

void count_products(benchmark::State& state, double multiply_adds) {
  state.counters["GF/s"] = benchmark::Counter(2e-9 * multiply_adds * double(state.iterations()),
                                              benchmark::Counter::kIsRate);
}

MethodSettings pattern_2_4() {
  MethodSettings pruning = settings();
  pruning.name = MethodName::sparsegpt;
  pruning.sparsity.pattern = {2, 4};
  pruning.bits = unquantised_bits;
  return pruning;
}

/// Rows through the solver: packing, rounding or pruning, errors fed forward; neither measured nor
/// stored.
void solve_with(benchmark::State& state, const MethodSettings& s,
                at::ScalarType weight_dtype = at::kFloat) {
  const auto rows = state.range(0), columns = state.range(1);
  const Problem& p = problem(rows, columns);
  Threads threads(state.range(2));
  for (auto _ : state) {
    const GptqTiles tiles(s, weight_dtype, p.factor, lanes::kernels(), threads.context());
    threads.pool.parallel_for((rows + 63) / 64, [&](int64_t i) {
      benchmark::DoNotOptimize(
          tiles(load_tiles(p.weight, 64 * i, std::min<int64_t>(64, rows - 64 * i))));
    });
  }
  count_products(state, double(rows) * columns * columns / 2);
}

void solve(benchmark::State& state) { solve_with(state, settings()); }
/// Of a bfloat16 model: products between blocks in whole numbers.
void solve_bfloat16(benchmark::State& state) { solve_with(state, settings(), at::kBFloat16); }
void sparsegpt_2_4(benchmark::State& state) { solve_with(state, pattern_2_4()); }
void sparsegpt_2_4_bfloat16(benchmark::State& state) {
  solve_with(state, pattern_2_4(), at::kBFloat16);
}
void sparsegpt_2_4_with_codes(benchmark::State& state) {
  MethodSettings joint = pattern_2_4();
  joint.bits = 4;
  solve_with(state, joint);
}

/// Method::solve as the pipeline calls it: with the three quadratic forms and packed codes.
void measure_with(benchmark::State& state, const MethodSettings& s,
                  at::ScalarType weight_dtype = at::kFloat) {
  const Problem& p = problem(state.range(0), state.range(1));
  Threads threads(state.range(2));
  const auto method = make_method(s, threads.context());
  for (auto _ : state) {
    benchmark::DoNotOptimize(method->controls(p.weight, p.hessian, weight_dtype).reference);
    benchmark::DoNotOptimize(method->solve(p.weight, p.hessian, p.factor, weight_dtype).error);
  }
}

void solve_and_measure(benchmark::State& state) { measure_with(state, settings()); }
void solve_and_measure_bfloat16(benchmark::State& state) {
  measure_with(state, settings(), at::kBFloat16);
}
/// With the threshold over all rows of each block.
void sparsegpt_50_and_measure(benchmark::State& state) {
  MethodSettings pruning = pattern_2_4();
  pruning.sparsity = {0.5, {}};
  measure_with(state, pruning);
}

void one_quadratic_form(benchmark::State& state) {
  const auto rows = state.range(0), columns = state.range(1);
  const Problem& p = problem(rows, columns);
  Threads threads(state.range(2));
  for (auto _ : state) {
    const QuadraticForm form(p.hessian, lanes::kernels(), threads.context());
    threads.pool.parallel_for((rows + 63) / 64, [&](int64_t i) {
      benchmark::DoNotOptimize(
          form(load_tiles(p.weight, 64 * i, std::min<int64_t>(64, rows - 64 * i))));
    });
  }
  count_products(state, double(rows) * columns * columns / 2);
}

/// The trailing updates alone, by the library's product on all its threads: the share that any
/// blocked solver has.
void products_alone(benchmark::State& state) {
  const auto rows = state.range(0), columns = state.range(1);
  const Problem& p = problem(rows, columns);
  at::set_num_threads(int(state.range(2)));
  at::Tensor w = p.weight.clone();
  const at::Tensor e = w.narrow(1, 0, 128).clone();
  for (auto _ : state) {
    for (int64_t first = 0; first + 128 < columns; first += 128) {
      at::Tensor rest = w.narrow(1, first + 128, columns - first - 128);
      rest.addmm_(e, p.factor.upper.narrow(0, first, 128).narrow(1, first + 128, rest.size(1)), 1,
                  -1e-9);
    }
  }
  at::set_num_threads(1);
  count_products(state, double(rows) * columns * columns / 2);
}

/// The published loop in the tensor library's operations: blocks of 128, one column after the
/// other. `settle(weight, block, first, i)` is what column i of the block at `first` becomes.
template <class Settle>
at::Tensor feed_errors_forward(const at::Tensor& weight, const at::Tensor& upper,
                               const Settle& settle) {
  const int64_t columns = weight.size(1);
  at::Tensor w = weight.clone(), q = at::empty_like(w);
  for (int64_t first = 0; first < columns; first += 128) {
    const int64_t last = std::min(first + 128, columns);
    at::Tensor block = w.narrow(1, first, last - first).clone(), errors = at::zeros_like(block);
    for (int64_t i = 0; i < last - first; ++i) {
      const at::Tensor settled = settle(w, block, first, i);
      const at::Tensor error = (block.select(1, i) - settled) / upper[first + i][first + i];
      const at::Tensor row = upper[first + i].narrow(0, first + i, last - first - i);
      block.narrow(1, i, last - first - i).sub_(error.unsqueeze(1).matmul(row.unsqueeze(0)));
      q.select(1, first + i).copy_(settled);
      errors.select(1, i).copy_(error);
    }
    if (last < columns) {
      w.narrow(1, last, columns - last)
          .sub_(
              errors.matmul(upper.narrow(0, first, last - first).narrow(1, last, columns - last)));
    }
  }
  return q;
}

at::Tensor published_loop(const at::Tensor& weight, const at::Tensor& upper, int64_t group_size) {
  const int64_t columns = weight.size(1);
  at::Tensor scale, zero;
  return feed_errors_forward(
      weight, upper, [&](const at::Tensor& w, const at::Tensor& block, int64_t first, int64_t i) {
        if ((first + i) % group_size == 0) {
          const at::Tensor group =
              w.narrow(1, first + i, std::min(group_size, columns - first - i));
          const at::Tensor low = std::get<0>(group.min(1)).clamp_max(0),
                           high = std::get<0>(group.max(1)).clamp_min(0);
          scale = (high - low) / 15;
          zero = at::round(-low / scale);
        }
        const at::Tensor x = block.select(1, i);
        return scale * (at::clamp(at::round(x / scale) + zero, 0, 15) - zero);
      });
}

void published(benchmark::State& state) {
  const Problem& p = problem(state.range(0), state.range(1));
  at::set_num_threads(int(state.range(2)));
  for (auto _ : state) benchmark::DoNotOptimize(published_loop(p.weight, p.factor.upper, 128));
  at::set_num_threads(1);
}

/// The published pruning loop, 2:4.
at::Tensor published_pruning_loop(const at::Tensor& weight, const at::Tensor& upper) {
  at::Tensor pruned;
  return feed_errors_forward(
      weight, upper, [&](const at::Tensor&, const at::Tensor& block, int64_t first, int64_t i) {
        if (i == 0) pruned = at::zeros_like(block, at::kBool);
        if (i % 4 == 0) {
          const at::Tensor pivots = upper.diagonal().narrow(0, first + i, 4);
          const at::Tensor scores = block.narrow(1, i, 4).square() / pivots.square();
          pruned.narrow(1, i, 4).scatter_(1, std::get<1>(scores.topk(2, 1, false)), true);
        }
        return block.select(1, i).masked_fill(pruned.select(1, i), 0);
      });
}

void published_2_4(benchmark::State& state) {
  const Problem& p = problem(state.range(0), state.range(1));
  at::set_num_threads(int(state.range(2)));
  for (auto _ : state) benchmark::DoNotOptimize(published_pruning_loop(p.weight, p.factor.upper));
  at::set_num_threads(1);
}

/// Arguments: columns, threads.
void factor(benchmark::State& state) {
  const Problem& p = problem(64, state.range(0));
  Threads threads(state.range(1));
  for (auto _ : state)
    benchmark::DoNotOptimize(factorise_inverse(p.hessian, 0.01, 0, threads.context()).upper);
  count_products(state, double(state.range(0)) * state.range(0) * state.range(0) / 3);
}

void lapack_trio(benchmark::State& state) {
  const Problem& p = problem(64, state.range(0));
  at::set_num_threads(int(state.range(1)));
  for (auto _ : state) {
    at::Tensor h = p.hessian.clone();
    h.diagonal().add_(0.01 * h.diag().mean().item<double>());
    benchmark::DoNotOptimize(
        at::linalg_cholesky(at::cholesky_inverse(at::linalg_cholesky(h)), true));
  }
  at::set_num_threads(1);
}

void shapes(benchmark::internal::Benchmark* bench) {
  for (const int64_t threads : {1, 2}) {
    for (const auto& [rows, columns] :
         {std::pair{576, 576}, {576, 1536}, {2048, 2048}, {4096, 4096}}) {
      bench->Args({rows, columns, threads});
    }
  }
  bench->UseRealTime()->Unit(benchmark::kMillisecond);
}

void sizes(benchmark::internal::Benchmark* bench) {
  for (const int64_t threads : {1, 2}) {
    for (const int64_t columns : {576, 1536, 2048, 4096}) bench->Args({columns, threads});
  }
  bench->UseRealTime()->Unit(benchmark::kMillisecond);
}

BENCHMARK(solve)->Apply(shapes);
BENCHMARK(solve_bfloat16)->Apply(shapes);
BENCHMARK(products_alone)->Apply(shapes);
BENCHMARK(published)->Apply(shapes);
BENCHMARK(sparsegpt_2_4)->Apply(shapes);
BENCHMARK(sparsegpt_2_4_bfloat16)->Apply(shapes);
BENCHMARK(sparsegpt_2_4_with_codes)->Apply(shapes);
BENCHMARK(published_2_4)->Apply(shapes);
BENCHMARK(sparsegpt_50_and_measure)->Apply(shapes);
BENCHMARK(one_quadratic_form)->Apply(shapes);
BENCHMARK(solve_and_measure)->Apply(shapes);
BENCHMARK(solve_and_measure_bfloat16)->Apply(shapes);
BENCHMARK(factor)->Apply(sizes);
BENCHMARK(lapack_trio)->Apply(sizes);

}  // namespace
}  // namespace selfcal

BENCHMARK_MAIN();
