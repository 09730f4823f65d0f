// `linear` on whole numbers of 16 bits.
#pragma once
#include "stages/kernels/cpu/result_tiles.hpp"

namespace selfcal::kernels {

/// operands.y = x weight^T + bias, as linear_tiled says of whole numbers.
void multiply_whole_rows(const Context& context, const Operands& operands);

}  // namespace selfcal::kernels
