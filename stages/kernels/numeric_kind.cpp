#include "stages/kernels/numeric_kind.hpp"

#include <cpuid.h>
#include <fmt/format.h>
#include <torch/headeronly/version.h>

#include <cstring>

#include "stages/kernels/cpu/gemm.hpp"
#include "stages/kernels/cpu/matrix_units.hpp"
#include "stages/kernels/cpu/vector_kernels.hpp"

namespace selfcal::kernels {
namespace {

constexpr int arithmetic_version = 7;  // raised when our kernels' results change

std::string processor_vendor() {
  unsigned eax = 0, words[3] = {};
  __get_cpuid(0, &eax, &words[0], &words[2], &words[1]);
  char name[13] = {};
  std::memcpy(name, words, 12);
  return name;
}

const char* products_of_float32() { return library_is_tuned() ? "library" : "panels"; }
const char* products_of_bfloat16() { return matrix_units() ? matrix_units()->name : "whole"; }

}  // namespace

std::string numeric_kind() {
  __builtin_cpu_init();
  std::string instructions;
  const auto note = [&](bool present, const char* name) {
    if (present) instructions += fmt::format(" {}", name);
  };
  note(__builtin_cpu_supports("avx2"), "avx2");
  note(__builtin_cpu_supports("fma"), "fma");
  note(__builtin_cpu_supports("avx512f"), "avx512f");
  note(__builtin_cpu_supports("avx512bf16"), "avx512bf16");
  return fmt::format("cpu {}{}; vectors {}; products {}, {}; libtorch {}; arithmetic {}",
                     processor_vendor(), instructions, vector_kernels().name, products_of_float32(),
                     products_of_bfloat16(), TORCH_VERSION, arithmetic_version);
}

}  // namespace selfcal::kernels
