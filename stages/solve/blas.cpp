#include "stages/solve/blas.hpp"

// Exported by the tensor library, which ships no header for them.
#define SELFCAL_DECLARE(T, p)                                                                     \
  void p##gemm_(const char*, const char*, const int*, const int*, const int*, const T*, const T*, \
                const int*, const T*, const int*, const T*, T*, const int*);                      \
  void p##trsm_(const char*, const char*, const char*, const char*, const int*, const int*,       \
                const T*, const T*, const int*, T*, const int*);                                  \
  void p##potrf_(const char*, const int*, T*, const int*, int*);
extern "C" {
SELFCAL_DECLARE(float, s)
SELFCAL_DECLARE(double, d)
}

namespace selfcal::blas {

#define SELFCAL_DEFINE(T, p)                                                                     \
  template <>                                                                                    \
  void gemm(char transpose_a, char transpose_b, int64_t m, int64_t n, int64_t k, T alpha,        \
            const T* a, int64_t lda, const T* b, int64_t ldb, T beta, T* c, int64_t ldc) {       \
    const int rows = int(m), columns = int(n), depth = int(k), sa = int(lda), sb = int(ldb),     \
              sc = int(ldc);                                                                     \
    p##gemm_(&transpose_a, &transpose_b, &rows, &columns, &depth, &alpha, a, &sa, b, &sb, &beta, \
             c, &sc);                                                                            \
  }                                                                                              \
  template <>                                                                                    \
  void trsm(char side, char triangle, char transpose, int64_t m, int64_t n, const T* a,          \
            int64_t lda, T* b, int64_t ldb) {                                                    \
    const int rows = int(m), columns = int(n), sa = int(lda), sb = int(ldb);                     \
    const T one = 1;                                                                             \
    p##trsm_(&side, &triangle, &transpose, "N", &rows, &columns, &one, a, &sa, b, &sb);          \
  }                                                                                              \
  template <>                                                                                    \
  bool potrf(char triangle, int64_t n, T* a, int64_t lda) {                                      \
    const int size = int(n), stride = int(lda);                                                  \
    int status = 0;                                                                              \
    p##potrf_(&triangle, &size, a, &stride, &status);                                            \
    return status == 0;                                                                          \
  }
SELFCAL_DEFINE(float, s)
SELFCAL_DEFINE(double, d)

}  // namespace selfcal::blas
