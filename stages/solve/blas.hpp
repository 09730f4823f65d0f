// The few BLAS and LAPACK routines that the factorisation uses, on the calling thread.
// Column-major, as they are.
#pragma once
#include <cstdint>

namespace selfcal::blas {

/// C = alpha op(A) op(B) + beta C; C: m x n.
template <class T>
void gemm(char transpose_a, char transpose_b, int64_t m, int64_t n, int64_t k, T alpha, const T* a,
          int64_t lda, const T* b, int64_t ldb, T beta, T* c, int64_t ldc);

/// Triangular solve in place: B = op(A)^-1 B (side 'L') or B op(A)^-1 (side 'R'); B: m x n, A not
/// unit.
template <class T>
void trsm(char side, char triangle, char transpose, int64_t m, int64_t n, const T* a, int64_t lda,
          T* b, int64_t ldb);

/// Cholesky factor in place; false where A is not positive definite.
template <class T>
bool potrf(char triangle, int64_t n, T* a, int64_t lda);

}  // namespace selfcal::blas
