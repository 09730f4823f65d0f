// The `linear` of many rows: tiles of the result, each computed by one thread.
#pragma once
#include "stages/kernels/ops.hpp"

namespace selfcal::kernels {

/// Who multiplies a tile: our inner product over packed panels, the same on whole numbers, the BLAS
/// inside libtorch (float32), or the processor's matrix units (bfloat16).
enum class Products { panels, whole, library, units };

/// float32: the library where it is tuned for the processor. bfloat16: matrix units where there are
/// any; else whole numbers, which are multiplied almost twice as fast as float32, where `result` is
/// bfloat16 too and there are at most 4096 inputs. Panels for the rest.
Products best_products(int64_t inputs, at::ScalarType operands, at::ScalarType result);

/// As `linear`. With panels and units, an entry's sum runs along the input in an order that depends
/// on the number of inputs only; with the library, on the tile's shape too.
///
/// With whole numbers, rows of x and of the weight are rounded to 16 bits relative to their norms,
/// multiplied exactly and scaled back. An entry is off by about 2^-17 |x row| |weight row|: next to
/// a typical one, 1e-5 sqrt(inputs), where rounding it to bfloat16 costs 1e-3. A row's bits depend
/// on no other row.
at::Tensor linear_tiled(const Context& context, const at::Tensor& x, const at::Tensor& weight,
                        const at::Tensor& bias, std::optional<at::ScalarType> result,
                        Products products);

}  // namespace selfcal::kernels
