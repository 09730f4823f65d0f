#include "stages/kernels/numeric_kind.hpp"

#include <cpuid.h>
#include <fmt/format.h>
#include <torch/headeronly/version.h>

#include <cstring>

#include "stages/kernels/cpu/gemm.hpp"
#include "stages/kernels/cpu/vector_kernels.hpp"

namespace selfcal::kernels {
namespace {

constexpr int arithmetic_version = 4;  // raised when our kernels' results change

std::string processor_vendor() {
  unsigned eax = 0, words[3] = {};
  __get_cpuid(0, &eax, &words[0], &words[2], &words[1]);
  char name[13] = {};
  std::memcpy(name, words, 12);
  return name;
}

bool has_tile_units() {
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  return __get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) && (edx >> 22 & 1) != 0;  // AMX-BF16
}

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
  note(has_tile_units(), "amx-bf16");
  return fmt::format("cpu {}{}; vectors {}; products {}; libtorch {}; arithmetic {}",
                     processor_vendor(), instructions, vector_kernels().name,
                     library_is_tuned() ? "of the library" : "in panels and whole numbers",
                     TORCH_VERSION, arithmetic_version);
}

}  // namespace selfcal::kernels
