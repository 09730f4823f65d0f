// `selfcal logits`: the model's arithmetic alone, for parity checks.
#pragma once
#include <string>

#include "base/file.hpp"
#include "stages/kernels/ops.hpp"

namespace selfcal {

/// Reads `input_ids` int64 [batch, tokens] of a safetensors file and writes `logits` float32
/// [batch, tokens, vocabulary], atomically. `dtype` as in open_model. A bad token file is
/// ExitCode::data. Independent.
void write_logits(const fs::path& model_directory, const fs::path& tokens, const fs::path& out,
                  const std::string& dtype, kernels::Context context);

}  // namespace selfcal
