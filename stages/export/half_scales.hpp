// What the formats of GPTQ and AWQ share: scales in float16, [groups, rows].
#pragma once
#include <string>

#include "storage/layer_file.hpp"

namespace selfcal {

/// Transposed; ExitCode::config, beginning with `name`, where float16 cannot hold a scale exactly.
at::Tensor half_scales(const CompressedLinear& linear, const std::string& name);

}  // namespace selfcal
