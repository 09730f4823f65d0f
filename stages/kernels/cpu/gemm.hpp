// Matrix products of one thread on one tile, by the BLAS inside libtorch. Row-major, float32
// results.
#pragma once
#include <cstdint>

namespace selfcal::kernels {

/// Rows at `data`, `stride` elements apart.
template <class T>
struct Rows {
  T* data;
  int64_t stride;
};

/// Whether that BLAS was tuned for the wide vectors of this processor: Intel's with AVX-512. On
/// others our own products are faster.
bool library_is_tuned();

/// c[rows, columns] = a[rows, depth] b[columns, depth]^T.
void multiply_transposed(int64_t rows, int64_t columns, int64_t depth, Rows<const float> a,
                         Rows<const float> b, Rows<float> c);

}  // namespace selfcal::kernels
