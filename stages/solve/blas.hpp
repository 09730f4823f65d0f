// Matrix products and the Cholesky factor of small tiles, by the library on the calling thread.
// Row-major.
#pragma once
#include <cstdint>

namespace selfcal::blas {

/// C = alpha A B + beta C; A: [rows, depth], B: [depth, columns], rows `lda`, `ldb`, `ldc` apart.
/// T: float or double.
template <class T>
void multiply(int64_t rows, int64_t columns, int64_t depth, T alpha, const T* a, int64_t lda,
              const T* b, int64_t ldb, T beta, T* c, int64_t ldc);

/// C = alpha A B^T + beta C; B: [columns, depth].
template <class T>
void multiply_transposed(int64_t rows, int64_t columns, int64_t depth, T alpha, const T* a,
                         int64_t lda, const T* b, int64_t ldb, T beta, T* c, int64_t ldc);

/// A = L L^T in place, the lower triangle; false where A is not positive definite.
template <class T>
bool factorise(int64_t n, T* a, int64_t lda);

}  // namespace selfcal::blas
