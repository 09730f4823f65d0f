#include "stages/kernels/cpu/gemm.hpp"

// libtorch exports MKL's entry points but ships no header for them.
extern "C" {
void sgemm_(const char* transa, const char* transb, const int* m, const int* n, const int* k,
            const float* alpha, const float* a, const int* lda, const float* b, const int* ldb,
            const float* beta, float* c, const int* ldc);
}

namespace selfcal::kernels {

bool library_is_tuned() {
#ifdef __x86_64__
  return __builtin_cpu_is("intel") && __builtin_cpu_supports("avx512f");
#else
  return false;
#endif
}

// sgemm_ is column-major: it sees each row-major matrix transposed, so the operands change places.
void multiply_transposed(int64_t rows, int64_t columns, int64_t depth, Rows<const float> a,
                         Rows<const float> b, Rows<float> c) {
  const int m = static_cast<int>(columns), n = static_cast<int>(rows), k = static_cast<int>(depth);
  const int lda = static_cast<int>(a.stride), ldb = static_cast<int>(b.stride),
            ldc = static_cast<int>(c.stride);
  const float one = 1, zero = 0;
  sgemm_("T", "N", &m, &n, &k, &one, b.data, &ldb, a.data, &lda, &zero, c.data, &ldc);
}

}  // namespace selfcal::kernels
