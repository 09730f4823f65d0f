// Which levels of x86-64 this processor has, by the features that code for them is compiled with.
#pragma once

namespace selfcal::kernels {

/// x86-64-v3. (Compilers do not agree on asking for the level by its name.)
inline bool has_avx2() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
         __builtin_cpu_supports("bmi2");
}

/// x86-64-v4.
inline bool has_avx512() {
  return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
         __builtin_cpu_supports("avx512vl");
}

inline bool has_vnni() { return has_avx512() && __builtin_cpu_supports("avx512vnni"); }

}  // namespace selfcal::kernels
