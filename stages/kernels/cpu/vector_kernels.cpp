#include "stages/kernels/cpu/vector_kernels.hpp"

#include "stages/kernels/cpu/instruction_sets.hpp"

namespace selfcal::kernels {

namespace baseline {
extern const VectorKernels kernels;
}

#ifdef SELFCAL_X86
namespace avx2 {
extern const VectorKernels kernels;
}
namespace avx512 {
extern const VectorKernels kernels;
}
namespace avx512vnni {
extern const VectorKernels kernels;
}

#endif

const VectorKernels* supported_kernels(int rank) {
  const VectorKernels* found[4] = {};
  int count = 0;
#ifdef SELFCAL_X86
  if (has_vnni()) found[count++] = &avx512vnni::kernels;
  if (has_avx512()) found[count++] = &avx512::kernels;
  if (has_avx2()) found[count++] = &avx2::kernels;
#endif
  found[count++] = &baseline::kernels;
  return rank < count ? found[rank] : nullptr;
}

const VectorKernels& vector_kernels() {
  static const VectorKernels& best = *supported_kernels(0);
  return best;
}

}  // namespace selfcal::kernels
