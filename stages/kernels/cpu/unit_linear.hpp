// `linear` of bfloat16 on the processor's matrix units.
#pragma once
#include "stages/kernels/cpu/matrix_units.hpp"
#include "stages/kernels/cpu/result_tiles.hpp"

namespace selfcal::kernels {

/// operands.y = x weight^T + bias; x and weight are bfloat16. An entry's sum depends on its own row
/// and column only.
void multiply_by_units(const Context& context, const MatrixUnits& units, const Operands& operands);

/// The same for at most MatrixUnits::panel_columns rows of x, with a whole number of
/// MatrixUnits::step of inputs: weights are read once, as they lie. Same bits.
void multiply_few_by_units(const Context& context, const MatrixUnits& units,
                           const Operands& operands);

}  // namespace selfcal::kernels
