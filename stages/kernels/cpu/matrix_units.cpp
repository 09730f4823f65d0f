#include "stages/kernels/cpu/matrix_units.hpp"

#include <array>

#ifdef SELFCAL_X86
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include "stages/kernels/cpu/instruction_sets.hpp"

namespace selfcal::kernels {

#ifdef SELFCAL_X86
namespace amx {
extern const MatrixUnits units;
}
namespace bfloat16_pairs {
extern const MatrixUnits units;
}

namespace {

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

namespace {

struct Supported {
  std::array<const MatrixUnits*, 3> list{};  // null after the last

  Supported() {
#ifdef SELFCAL_X86
    size_t count = 0;
    if (!has_vnni()) return;
    if (processor_has_tiles() && system_lends_tiles()) list[count++] = &amx::units;
    if (__builtin_cpu_supports("avx512bf16")) list[count++] = &bfloat16_pairs::units;
#endif
  }
};

}  // namespace

const MatrixUnits* supported_units(int rank) {
  static const Supported supported;
  return supported.list.at(static_cast<size_t>(rank));
}

const MatrixUnits* matrix_units() { return supported_units(0); }

}  // namespace selfcal::kernels
