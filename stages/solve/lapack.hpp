// The Cholesky factor of a small tile and its inverse, by the library on the calling thread.
// Row-major. T: float or double.
#pragma once
#include <cstdint>

namespace selfcal::lapack {

/// A = L L^T in place, the lower triangle; false where A is not positive definite.
template <class T>
bool factorise(int64_t n, T* a, int64_t stride);

/// inverse = L^-1, [n, n] without gaps. L: the lower triangle of `lower`.
template <class T>
void invert(int64_t n, const T* lower, int64_t stride, T* inverse);

}  // namespace selfcal::lapack
