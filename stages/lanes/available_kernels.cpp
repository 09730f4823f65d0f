// Which of the compiled instruction sets this CPU has.
#include <array>

#include "stages/kernels/cpu/instruction_sets.hpp"
#include "stages/kernels/cpu/matrix_units.hpp"
#include "stages/lanes/lanes.hpp"

namespace selfcal::lanes {

namespace baseline {
extern const Kernels kernels;
}
#ifdef SELFCAL_HAS_x86_64_v3
namespace x86_64_v3 {
extern const Kernels kernels;
}
namespace x86_64_v4 {
extern const Kernels kernels;
}
namespace x86_64_v4_vnni {
extern const Kernels kernels;
}
namespace amx {
Kernels with_split_products(const Kernels& kernels);
}
#endif

namespace {

struct Available {
  std::array<const Kernels*, 5> list{};
  int64_t count = 0;
  Kernels with_units{};

  Available(const Available&) = delete;
  Available& operator=(const Available&) = delete;
  Available() {
#ifdef SELFCAL_HAS_x86_64_v3
    if (const auto* units = kernels::matrix_units(); units && units->has_tiles) {
      with_units = amx::with_split_products(x86_64_v4_vnni::kernels);
      list[count++] = &with_units;
    }
    if (kernels::has_vnni()) list[count++] = &x86_64_v4_vnni::kernels;
    if (kernels::has_avx512()) list[count++] = &x86_64_v4::kernels;
    if (kernels::has_avx2()) list[count++] = &x86_64_v3::kernels;
#endif
    list[count++] = &baseline::kernels;
  }
};

const Available& available() {
  static const Available sets;
  return sets;
}

}  // namespace

const Kernels& kernels() { return *available().list[0]; }

KernelList available_kernels() { return {available().list.data(), available().count}; }

}  // namespace selfcal::lanes
