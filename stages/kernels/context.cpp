#include <ATen/Parallel.h>

#include "stages/kernels/ops.hpp"

namespace selfcal::kernels {

void use_one_library_thread() { at::set_num_threads(1); }

}  // namespace selfcal::kernels
