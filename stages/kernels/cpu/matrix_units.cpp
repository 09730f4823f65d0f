#include "stages/kernels/cpu/matrix_units.hpp"

#ifdef SELFCAL_X86
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace selfcal::kernels {

#ifdef SELFCAL_X86
namespace amx {
extern const MatrixUnits units;
}

namespace {

/// What the files of `amx` are compiled for besides.
bool has_wide_vectors() {
  return __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vnni");
}

bool processor_has_tiles() {
  constexpr unsigned bfloat16_and_tiles = 1u << 22 | 1u << 24;
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  return __get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) != 0 &&
         (edx & bfloat16_and_tiles) == bfloat16_and_tiles;
}

/// Linux lends the tile registers to processes that ask.
bool system_lends_tiles() {
  constexpr int request_permission = 0x1023, tile_data = 18;  // ARCH_REQ_XCOMP_PERM
  return syscall(SYS_arch_prctl, request_permission, tile_data) == 0;
}

}  // namespace
#endif

const MatrixUnits* matrix_units() {
#ifdef SELFCAL_X86
  static const bool lent = has_wide_vectors() && processor_has_tiles() && system_lends_tiles();
  return lent ? &amx::units : nullptr;
#else
  return nullptr;
#endif
}

}  // namespace selfcal::kernels
