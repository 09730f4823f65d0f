// The `linear` of many rows: tiles of the result, each computed by one thread.
#pragma once
#include "stages/kernels/ops.hpp"

namespace selfcal::kernels {

/// Who multiplies a tile: our inner product over packed panels, or the BLAS inside libtorch.
enum class Products { panels, library };

/// The library on Intel's processors with AVX-512 or AMX, which it was tuned for; panels elsewhere.
Products best_products();

/// As `linear`. With panels, an entry's sum runs along the input in an order that depends on the
/// number of inputs only; with the library, on the tile's shape too.
at::Tensor linear_tiled(const Context& context, const at::Tensor& x, const at::Tensor& weight,
                        const at::Tensor& bias, std::optional<at::ScalarType> result,
                        Products products);

}  // namespace selfcal::kernels
