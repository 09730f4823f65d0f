#include "stages/solve/blas.hpp"

// Exported by the tensor library, which ships no header for them. They are column-major, so that
// they see the transpose of every row-major matrix: operands change places and lower triangles are
// upper.
#define SELFCAL_DECLARE(T, p)                                                                     \
  void p##gemm_(const char*, const char*, const int*, const int*, const int*, const T*, const T*, \
                const int*, const T*, const int*, const T*, T*, const int*);                      \
  void p##potrf_(const char*, const int*, T*, const int*, int*);
extern "C" {
SELFCAL_DECLARE(float, s)
SELFCAL_DECLARE(double, d)
}

namespace selfcal::blas {
namespace {

void gemm(char first, int m, int n, int k, float alpha, const float* a, int lda, const float* b,
          int ldb, float beta, float* c, int ldc) {
  sgemm_(&first, "N", &m, &n, &k, &alpha, a, &lda, b, &ldb, &beta, c, &ldc);
}

void gemm(char first, int m, int n, int k, double alpha, const double* a, int lda, const double* b,
          int ldb, double beta, double* c, int ldc) {
  dgemm_(&first, "N", &m, &n, &k, &alpha, a, &lda, b, &ldb, &beta, c, &ldc);
}

int potrf(int n, float* a, int lda) {
  int status = 0;
  spotrf_("U", &n, a, &lda, &status);
  return status;
}

int potrf(int n, double* a, int lda) {
  int status = 0;
  dpotrf_("U", &n, a, &lda, &status);
  return status;
}

}  // namespace

template <class T>
void multiply(int64_t rows, int64_t columns, int64_t depth, T alpha, const T* a, int64_t lda,
              const T* b, int64_t ldb, T beta, T* c, int64_t ldc) {
  gemm('N', int(columns), int(rows), int(depth), alpha, b, int(ldb), a, int(lda), beta, c,
       int(ldc));
}

template <class T>
void multiply_transposed(int64_t rows, int64_t columns, int64_t depth, T alpha, const T* a,
                         int64_t lda, const T* b, int64_t ldb, T beta, T* c, int64_t ldc) {
  gemm('T', int(columns), int(rows), int(depth), alpha, b, int(ldb), a, int(lda), beta, c,
       int(ldc));
}

template <class T>
bool factorise(int64_t n, T* a, int64_t lda) {
  return potrf(int(n), a, int(lda)) == 0;
}

#define SELFCAL_INSTANTIATE(T)                                                                  \
  template void multiply(int64_t, int64_t, int64_t, T, const T*, int64_t, const T*, int64_t, T, \
                         T*, int64_t);                                                          \
  template void multiply_transposed(int64_t, int64_t, int64_t, T, const T*, int64_t, const T*,  \
                                    int64_t, T, T*, int64_t);                                   \
  template bool factorise(int64_t, T*, int64_t);
SELFCAL_INSTANTIATE(float)
SELFCAL_INSTANTIATE(double)

}  // namespace selfcal::blas
