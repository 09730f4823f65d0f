#include "stages/solve/lapack.hpp"

#include <algorithm>

// Exported by the tensor library, which ships no header for them. They are column-major, so that
// they see the transpose of every row-major matrix: lower triangles are upper, and what stands on
// the left is on the right.
#define SELFCAL_DECLARE(T, p)                                                               \
  void p##potrf_(const char*, const int*, T*, const int*, int*);                            \
  void p##trsm_(const char*, const char*, const char*, const char*, const int*, const int*, \
                const T*, const T*, const int*, T*, const int*);
extern "C" {
SELFCAL_DECLARE(float, s)
SELFCAL_DECLARE(double, d)
}

namespace selfcal::lapack {
namespace {

void potrf(int n, float* a, int stride, int* status) { spotrf_("U", &n, a, &stride, status); }
void potrf(int n, double* a, int stride, int* status) { dpotrf_("U", &n, a, &stride, status); }

void divide_by(int n, const float* triangle, int stride, float* matrix) {
  const float one = 1;
  strsm_("R", "U", "N", "N", &n, &n, &one, triangle, &stride, matrix, &n);
}

void divide_by(int n, const double* triangle, int stride, double* matrix) {
  const double one = 1;
  dtrsm_("R", "U", "N", "N", &n, &n, &one, triangle, &stride, matrix, &n);
}

}  // namespace

template <class T>
bool factorise(int64_t n, T* a, int64_t stride) {
  int status = 0;
  potrf(int(n), a, int(stride), &status);
  return status == 0;
}

template <class T>
void invert(int64_t n, const T* lower, int64_t stride, T* inverse) {
  std::fill_n(inverse, n * n, T(0));
  for (int64_t i = 0; i < n; ++i) inverse[i * (n + 1)] = T(1);
  divide_by(int(n), lower, int(stride), inverse);
}

#define SELFCAL_INSTANTIATE(T)                   \
  template bool factorise(int64_t, T*, int64_t); \
  template void invert(int64_t, const T*, int64_t, T*);
SELFCAL_INSTANTIATE(float)
SELFCAL_INSTANTIATE(double)

}  // namespace selfcal::lapack
