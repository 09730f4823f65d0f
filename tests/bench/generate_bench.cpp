// usage: generate_bench MODEL_DIR [ROWS LENGTH THREADS DTYPE]: tokens a second of one micro-batch,
// beside what the processor's memory and arithmetic would allow. Prints one JSON line.
#include <ATen/ATen.h>
#include <fmt/format.h>

#include <chrono>
#include <cstdio>

#include "stages/generate/generator.hpp"

using namespace selfcal;

static double seconds_of(const std::function<void()>& action) {
  const auto start = std::chrono::steady_clock::now();
  action();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

/// Fused multiply-adds of one thread on registers; returns operations done.
__attribute__((target("avx2,fma"))) static double multiply_add() {
  using Floats = float __attribute__((vector_size(32)));
  Floats sums[12] = {}, factor = Floats{} + 1.0000001f;
  constexpr int steps = 2000000;
  for (int i = 0; i < steps; ++i) {
    asm volatile("" : "+x"(factor));
#pragma GCC unroll 12
    for (auto& sum : sums) sum = sum * factor + factor;
  }
#pragma GCC unroll 12
  for (auto& sum : sums) asm volatile("" : "+x"(sum));
  return 2.0 * 8 * 12 * steps;
}

/// Best of several runs on all threads: operations a second.
static double arithmetic_limit(ThreadPool& threads) {
  double best = 0;
  for (int run = 0; run < 3; ++run) {
    std::vector<double> done(threads.size());
    const double seconds = seconds_of([&] {
      threads.parallel_for(threads.size(), [&](int64_t i) { done[i] = multiply_add(); });
    });
    double total = 0;
    for (double operations : done) total += operations;
    best = std::max(best, total / seconds);
  }
  return best;
}

/// Best of several sweeps over more than the caches hold: bytes a second.
static double memory_limit(ThreadPool& threads) {
  const auto memory = at::ones({int64_t{64} << 20}, at::kInt);
  const auto parts = memory.chunk(64);
  double best = 0;
  for (int run = 0; run < 5; ++run) {
    const double seconds = seconds_of([&] {
      threads.parallel_for(64, [&](int64_t i) {
        const auto* numbers = parts[i].const_data_ptr<int32_t>();
        int64_t sum = 0;
        for (int64_t k = 0; k < parts[i].numel(); k += 16) sum += numbers[k];  // one a cache line
        asm volatile("" : : "r"(sum));
      });
    });
    best = std::max(best, memory.nbytes() / seconds);
  }
  return best;
}

int main(int argc, char** argv) {
  if (argc < 2) {
    std::fprintf(stderr, "usage: generate_bench MODEL_DIR [ROWS LENGTH THREADS DTYPE]\n");
    return 64;
  }
  const auto number = [&](int i, int64_t otherwise) {
    return argc > i ? std::stoll(argv[i]) : otherwise;
  };
  const int64_t rows = number(2, 16), length = number(3, 256);
  kernels::use_one_library_thread();
  ThreadPool threads(static_cast<int>(number(4, 2)), kernels::use_one_library_thread);
  const double arithmetic = arithmetic_limit(threads), memory = memory_limit(threads);

  const auto model = open_model(argv[1], argc > 5 ? argv[5] : "auto", {&threads});
  CalibrationSettings settings;
  settings.sequences = settings.micro_batch = rows;
  settings.length = length;
  settings.end_of_text = EndOfText::ban;  // as many steps as the peer with min_new_tokens
  Generator generator(*model, settings, {&threads});
  const double seconds = seconds_of([&] { generator.sample({0}, [](const MicroBatch&) {}); });

  const ModelShape& shape = model->shape();
  double weight_bytes = 0, multiplied = 0;  // what a step reads, and the entries that it multiplies
  for (int64_t layer = 0; layer < shape.layers; ++layer) {
    for (const auto& [name, weight] : generator.block_weights(layer)) {
      weight_bytes += weight.nbytes();
      if (weight.dim() == 2) multiplied += weight.numel();
    }
  }
  const double head = static_cast<double>(shape.vocabulary) * shape.hidden;
  weight_bytes += head * c10::elementSize(shape.compute_dtype);
  multiplied += head;
  const double steps = length - 1, tokens_a_second = rows * steps / seconds;
  // Each token's keys and values are read at every later step.
  const double cache_bytes = 2.0 * shape.layers * shape.key_value_heads * shape.head_dim *
                             c10::elementSize(shape.compute_dtype) * rows * length * steps / 2;
  fmt::print(
      "{{\"rows\": {}, \"length\": {}, \"threads\": {}, \"dtype\": \"{}\", \"seconds\": {:.2f}, "
      "\"tokens_per_second\": {:.1f}, \"milliseconds_a_step\": {:.2f}, \"memory_limit_GBs\": "
      "{:.1f}, "
      "\"memory_share\": {:.2f}, \"arithmetic_limit_GFLOPs\": {:.1f}, \"arithmetic_share\": "
      "{:.2f}}}\n",
      rows, length, threads.size(), at::toString(shape.compute_dtype), seconds, tokens_a_second,
      1e3 * seconds / steps, 1e-9 * memory, (weight_bytes * steps + cache_bytes) / memory / seconds,
      1e-9 * arithmetic, 2 * multiplied * rows * steps / arithmetic / seconds);
}
