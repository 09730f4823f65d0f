// One decoder block of the demo model's shape on a leaf of 2048 tokens: GFLOP/s, and the share of
// what the same threads reach in bare float32 products. Block and products take turns, the best of
// each counts: neighbours on the machine then spoil neither alone.
#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <benchmark/benchmark.h>

#include <chrono>
#include <thread>

#include "stages/kernels/cpu/gemm.hpp"
#include "stages/model/decoder_block.hpp"

namespace selfcal {
namespace {

constexpr int64_t sequences = 4, tokens = 512, hidden_size = 576, mlp_width = 1536, heads = 9,
                  key_value_heads = 3, head_dim = 64, rows = sequences * tokens;

DecoderBlock demo_block(kernels::Context context) {
  BlockParts block;
  block.attention_norm = {"input_layernorm", hidden_size, 1e-5};
  block.attention.hidden = hidden_size;
  block.attention.heads = heads;
  block.attention.key_value_heads = key_value_heads;
  block.attention.head_dim = head_dim;
  block.attention.scale = 0.125;
  block.attention.rotary =
      std::make_shared<Rotary>(rotary_angles(ModelConfig("demo", "{}"), head_dim));
  block.mlp_norm = {"post_attention_layernorm", hidden_size, 1e-5};
  block.mlp.hidden = hidden_size;
  block.mlp.width = mlp_width;
  return DecoderBlock(context, block);
}

BlockWeights random_weights(const BlockSpec& spec, at::ScalarType dtype) {
  BlockWeights weights;
  for (const auto& [name, shape] : spec.parameters)
    weights[name] = (at::randn(shape) / std::sqrt(static_cast<double>(shape.back()))).to(dtype);
  return weights;
}

/// Two zeros of every four weights.
BlockWeights pruned(BlockWeights weights) {
  for (auto& [name, weight] : weights)
    if (weight.dim() == 2) weight.unflatten(-1, {-1, 4}).narrow(-1, 1, 2).zero_();
  return weights;
}

double linear_operations(const BlockSpec& spec) {
  double products = 0;
  for (const auto& linear : spec.linears)
    products += static_cast<double>(rows * linear.rows * linear.columns);
  return 2 * products;
}

/// q k^T and p v, each query with the keys that it sees.
double attention_operations() {
  return 2.0 * 2 * head_dim * heads * sequences * static_cast<double>(tokens * (tokens + 1) / 2);
}

double seconds_of(const auto& work) {
  const auto begin = std::chrono::steady_clock::now();
  work();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}

/// Each thread multiplies its share of the rows of one up-projection, as one library call in
/// float32.
double seconds_of_products(ThreadPool& pool, const at::Tensor& x, const at::Tensor& weight,
                           at::Tensor& product) {
  const int64_t share = rows / pool.size();
  return seconds_of([&] {
    pool.parallel_for(pool.size(), [&](int64_t part) {
      kernels::multiply_transposed(
          share, mlp_width, hidden_size,
          {x.const_data_ptr<float>() + part * share * hidden_size, hidden_size},
          {weight.const_data_ptr<float>(), hidden_size},
          {product.mutable_data_ptr<float>() + part * share * mlp_width, mlp_width});
    });
  });
}

template <class T, bool two_of_four = false>
void block_forward(benchmark::State& state) {
  kernels::use_one_library_thread();
  ThreadPool pool(static_cast<int>(state.range(0)), kernels::use_one_library_thread);
  const DecoderBlock block = demo_block({&pool});
  const at::ScalarType dtype = c10::CppTypeToScalarType<T>::value;
  BlockWeights weights = random_weights(block.spec(), dtype);
  if (two_of_four) weights = pruned(std::move(weights));
  const at::Tensor hidden = at::randn({sequences, tokens, hidden_size}).to(dtype);
  const at::Tensor x = hidden.view({rows, hidden_size}).to(at::kFloat),
                   up = weights.at("mlp.up_proj.weight").to(at::kFloat);
  at::Tensor product = at::empty({rows, mlp_width});

  double best_block = 1e9, best_product = 1e9;
  for (auto _ : state) {
    best_product = std::min(best_product, seconds_of_products(pool, x, up, product));
    const double seconds =
        seconds_of([&] { benchmark::DoNotOptimize(forward(block, hidden, weights)); });
    best_block = std::min(best_block, seconds);
    state.SetIterationTime(seconds);
  }
  const double operations = linear_operations(block.spec()) + attention_operations();
  const double share = rows / pool.size() * pool.size();
  const double block_rate = operations / best_block,
               product_rate = 2.0 * share * mlp_width * hidden_size / best_product;
  state.counters["GFLOP/s"] = block_rate * 1e-9;
  state.counters["products_GFLOP/s"] = product_rate * 1e-9;
  state.counters["of_products"] = block_rate / product_rate;
}

at::Tensor normed(const at::Tensor& x, const at::Tensor& weight) {
  const at::Tensor wide = x.to(at::kFloat);
  return weight * (wide * at::rsqrt(wide.square().mean(-1, true) + 1e-5)).to(x.scalar_type());
}

/// Heads before tokens, turned by their position.
at::Tensor turned(const at::Tensor& x, const at::Tensor& cosine, const at::Tensor& sine) {
  const auto halves = x.chunk(2, -1);
  return x * cosine + at::cat({-halves[1], halves[0]}, -1) * sine;
}

/// The same block by the library's operations, as transformers runs it: the peer.
template <class T>
void library_forward(benchmark::State& state) {
  at::set_num_threads(static_cast<int>(state.range(0)));
  const at::ScalarType dtype = c10::CppTypeToScalarType<T>::value;
  const BlockWeights weights = random_weights(demo_block({}).spec(), dtype);
  const auto by = [&](const at::Tensor& x, const std::string& name) {
    return at::linear(x, weights.at(name + ".weight"));
  };
  const auto heads_of = [](const at::Tensor& x, int64_t count) {
    return x.view({sequences, tokens, count, head_dim}).transpose(1, 2);
  };
  const at::Tensor hidden = at::randn({sequences, tokens, hidden_size}).to(dtype);
  const at::Tensor angles = at::randn({tokens, head_dim});
  const at::Tensor cosine = angles.cos().to(dtype), sine = angles.sin().to(dtype);
  for (auto _ : state)
    state.SetIterationTime(seconds_of([&] {
      const at::Tensor x = normed(hidden, weights.at("input_layernorm.weight"));
      const at::Tensor seen = at::scaled_dot_product_attention(
          turned(heads_of(by(x, "self_attn.q_proj"), heads), cosine, sine),
          turned(heads_of(by(x, "self_attn.k_proj"), key_value_heads), cosine, sine),
          heads_of(by(x, "self_attn.v_proj"), key_value_heads), {}, 0.0, true, 0.125, true);
      const at::Tensor attended =
          hidden +
          by(seen.transpose(1, 2).reshape({sequences, tokens, hidden_size}), "self_attn.o_proj");
      const at::Tensor y = normed(attended, weights.at("post_attention_layernorm.weight"));
      benchmark::DoNotOptimize(
          attended + by(at::silu(by(y, "mlp.gate_proj")) * by(y, "mlp.up_proj"), "mlp.down_proj"));
    }));
}

void thread_counts(benchmark::internal::Benchmark* benchmark) {
  for (int threads = 1; threads <= static_cast<int>(std::thread::hardware_concurrency());
       threads *= 2)
    benchmark->Arg(threads);
  benchmark->ArgName("threads")->UseManualTime()->Unit(benchmark::kMillisecond);
}

BENCHMARK_TEMPLATE(block_forward, float)->Apply(thread_counts);
BENCHMARK_TEMPLATE(block_forward, at::BFloat16)->Apply(thread_counts);
BENCHMARK_TEMPLATE(block_forward, at::BFloat16, true)->Apply(thread_counts);
BENCHMARK_TEMPLATE(library_forward, float)->Apply(thread_counts);
BENCHMARK_TEMPLATE(library_forward, at::BFloat16)->Apply(thread_counts);

}  // namespace
}  // namespace selfcal

BENCHMARK_MAIN();
