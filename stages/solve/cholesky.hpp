// Cholesky factor and triangular inverse by fixed tiles: library calls on one thread, the pool over
// the tiles, so that the bits do not depend on the number of threads.
#pragma once
#include <cstdint>

#include "stages/kernels/ops.hpp"

namespace selfcal {

/// A = L L^T in place, row-major [n, n]; only the lower triangle is read and written. False where A
/// is not positive definite, or so nearly not that a pivot lost all its digits. T: float or double.
template <class T>
bool factorise_lower(T* matrix, int64_t n, const kernels::Context& context);

/// U = J L^-1 J, J the reversal: upper, float32, row-major [n, n], zeros below the diagonal.
/// With A = J B J: U^T U = J L^-T L^-1 J = B^-1.
template <class T>
void invert_reversed(const T* lower, int64_t n, float* upper, const kernels::Context& context);

}  // namespace selfcal
