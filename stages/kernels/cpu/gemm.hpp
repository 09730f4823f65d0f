// Matrix products of one thread on one tile, by the BLAS inside libtorch. Row-major, float32
// results.
#pragma once
#include <c10/util/BFloat16.h>

#include <cstdint>

namespace selfcal::kernels {

/// Rows at `data`, `stride` elements apart.
template <class T>
struct Rows {
  T* data;
  int64_t stride;
};

/// Whether that BLAS was tuned for the wide units of this processor: Intel's with AVX-512 or AMX.
/// On others our own products are faster; its product of bfloat16 by far, even where they have
/// units for it.
bool library_is_tuned();

/// c[rows, columns] = a[rows, depth] b[columns, depth]^T. Products of bfloat16 are accumulated in
/// float32.
void multiply_transposed(int64_t rows, int64_t columns, int64_t depth, Rows<const float> a,
                         Rows<const float> b, Rows<float> c);
void multiply_transposed(int64_t rows, int64_t columns, int64_t depth, Rows<const c10::BFloat16> a,
                         Rows<const c10::BFloat16> b, Rows<float> c);

}  // namespace selfcal::kernels
