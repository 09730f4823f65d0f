#include "stages/kernels/cpu/vector/kernels.hpp"
#include "stages/kernels/cpu/vector/vector.hpp"

#define SELFCAL_TEXT_OF(name) #name
#define SELFCAL_TEXT(name) SELFCAL_TEXT_OF(name)

namespace selfcal::kernels::SELFCAL_INSTRUCTIONS {

extern const VectorKernels kernels;
const VectorKernels kernels = {SELFCAL_TEXT(SELFCAL_INSTRUCTIONS),
                               width,
                               transpose,
                               few_rows_tile,
                               attention_scratch,
                               attention_tile,
                               maximum,
                               exponentials,
                               split,
                               multiply_panel,
                               to_whole,
                               most_rows,
                               pack_whole_rows,
                               pack_whole_panel,
                               multiply_whole,
                               narrow_whole,
                               sum_squares,
                               sum_sizes,
                               columns_to_whole,
                               widen,
                               narrow,
                               narrow_rows,
                               split_in_two,
                               add,
                               divide_sums,
                               activate,
                               soft_cap,
                               rms_norm_row,
                               layer_norm_row,
                               rotate_head,
                               weigh,
                               all_finite16,
                               all_finite32};

}  // namespace selfcal::kernels::SELFCAL_INSTRUCTIONS
