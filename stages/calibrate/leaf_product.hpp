// The float32 product of two runs of columns of a leaf, on one thread: the unit of work of all
// second-order statistics.
#pragma once
#include <ATen/core/Tensor.h>

namespace selfcal {

/// x itself, or a copy where its storage does not start at a cache line (library calls may round
/// otherwise).
at::Tensor aligned(const at::Tensor& x);

/// X[:, row : row + rows]^T X[:, column : column + columns], float32 [rows, columns]. x: contiguous
/// float32 or bfloat16; products of bfloat16 are exact before they are summed in float32.
at::Tensor leaf_product(const at::Tensor& x, int64_t row, int64_t rows, int64_t column,
                        int64_t columns);

}  // namespace selfcal
