#include "stages/export/half_scales.hpp"

#include <ATen/ATen.h>

#include "base/error.hpp"
#include "storage/dtype.hpp"

namespace selfcal {

at::Tensor half_scales(const CompressedLinear& linear, const std::string& name) {
  const at::Tensor half = linear.scale.to(at::kHalf);
  if (!at::equal(half.to(at::kDouble), linear.scale.to(at::kDouble)))
    fail(ExitCode::config,
         "{}: scales are {}, some of which float16, the type of this format, cannot hold; compress "
         "with scale_dtype: float16, or export compressed-tensors or dense",
         name, dtype_name(linear.scale.scalar_type()));
  return half.t().contiguous();
}

}  // namespace selfcal
