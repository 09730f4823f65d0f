// Which levels of x86-64 this processor has; none of another architecture. (Compilers do not agree
// on asking for a level, or for all that is in it, by name.)
#pragma once

#if defined(__x86_64__)
#include <cpuid.h>
#endif

namespace selfcal::kernels {

#if defined(__x86_64__)
/// x86-64-v3.
inline bool has_avx2() {
  constexpr unsigned movbe_and_f16c = 1u << 22 | 1u << 29, lzcnt = 1u << 5;
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  const bool basic =
      __get_cpuid(1, &eax, &ebx, &ecx, &edx) != 0 && (ecx & movbe_and_f16c) == movbe_and_f16c;
  const bool extended =
      __get_cpuid(0x80000001, &eax, &ebx, &ecx, &edx) != 0 && (ecx & lzcnt) == lzcnt;
  return basic && extended && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
         __builtin_cpu_supports("bmi") && __builtin_cpu_supports("bmi2");
}

/// x86-64-v4.
inline bool has_avx512() {
  return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
         __builtin_cpu_supports("avx512vl");
}

inline bool has_vnni() { return has_avx512() && __builtin_cpu_supports("avx512vnni"); }
#else
inline bool has_avx2() { return false; }
inline bool has_avx512() { return false; }
inline bool has_vnni() { return false; }
#endif

}  // namespace selfcal::kernels
