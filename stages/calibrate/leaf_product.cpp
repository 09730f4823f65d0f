#include "stages/calibrate/leaf_product.hpp"

#include <ATen/ATen.h>

#include <cstdint>

// Of the BLAS inside the tensor library, which ships no header for it.
extern "C" {
void sgemm_(const char* transpose_a, const char* transpose_b, const int* m, const int* n,
            const int* k, const float* alpha, const float* a, const int* lda, const float* b,
            const int* ldb, const float* beta, float* c, const int* ldc);
void cblas_gemm_bf16bf16f32(int layout, int transpose_a, int transpose_b, int m, int n, int k,
                            float alpha, const uint16_t* a, int lda, const uint16_t* b, int ldb,
                            float beta, float* c, int ldc);
}

namespace selfcal {
namespace {
constexpr int row_major = 101, no_transpose = 111, transpose = 112;
}

at::Tensor aligned(const at::Tensor& x) {
  return reinterpret_cast<uintptr_t>(x.const_data_ptr()) % 64 == 0 ? x : x.clone();
}

at::Tensor leaf_product(const at::Tensor& x, int64_t row, int64_t rows, int64_t column,
                        int64_t columns) {
  at::Tensor product = at::empty({rows, columns}, at::kFloat);
  float* into = product.mutable_data_ptr<float>();
  const int m = int(rows), n = int(columns), k = int(x.size(0)), stride = int(x.size(1));
  if (x.scalar_type() == at::kBFloat16) {
    const auto* leaf = reinterpret_cast<const uint16_t*>(x.const_data_ptr<at::BFloat16>());
    cblas_gemm_bf16bf16f32(row_major, transpose, no_transpose, m, n, k, 1.0f, leaf + row, stride,
                           leaf + column, stride, 0.0f, into, n);
  } else {
    const float* leaf = x.const_data_ptr<float>();
    const float one = 1, zero = 0;
    // Column-major, so the transposed product: (X_column)^T X_row.
    sgemm_("N", "T", &n, &m, &k, &one, leaf + column, &stride, leaf + row, &stride, &zero, into,
           &n);
  }
  return product;
}

}  // namespace selfcal
