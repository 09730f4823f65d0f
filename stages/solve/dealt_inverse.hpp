// The second half of a factor by many: strips of columns of the triangular inverse, each from the
// Cholesky factor that one has found.
#pragma once
#include <span>
#include <vector>

#include "stages/solve/factor.hpp"

namespace selfcal {

/// L's triangle row by row, float32 [columns (columns + 1) / 2], and back.
at::Tensor pack_lower(const at::Tensor& lower);
at::Tensor unpack_lower(const at::Tensor& packed, int64_t columns);

/// Every `parts`-th strip of U from the `part`-th on, one after the other, down to the diagonal:
/// float32. With the bits of factorise_inverse(). Independent.
at::Tensor invert_part(const LowerFactor& factor, int part, int parts,
                       const kernels::Context& context);

/// U, [columns, columns], from all parts.
at::Tensor join_parts(const std::vector<std::span<const float>>& parts, int64_t columns,
                      const kernels::Context& context);

}  // namespace selfcal
