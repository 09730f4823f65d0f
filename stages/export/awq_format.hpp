// AutoAWQ's checkpoint format for its GEMM kernels, as AutoAWQ and vLLM read it.
#pragma once
#include "stages/export/compressed_tensors.hpp"

namespace selfcal::awq_format {

using compressed_tensors::Scheme;

/// The tensors that replace `<module>.weight`: qweight int32 [columns, rows / 8] and qzeros int32
/// [groups, rows / 8], eight codes of neighbouring outputs a word in the order 0 2 4 6 1 3 5 7,
/// and scales float16 [groups, rows]. Behind NeoX's dense_h_to_4h also act.scales float16 [rows] of
/// ones, as readers put a scale into the activation there. Bits other than 4, columns that are
/// assigned to groups one by one, scales that float16 cannot hold, rows that are no multiple of 8:
/// ExitCode::config.
NamedTensors pack(const std::string& name, const CompressedLinear& linear);

/// config.json of the dense model with quantization_config added; plain modules of the blocks are
/// named for AutoAWQ and transformers, and for GPTQModel. One group size for all modules, and
/// NeoX's dense_h_to_4h among them: else ExitCode::config.
std::string add_quantization(const std::string& config_text,
                             const std::map<std::string, Scheme>& modules,
                             const std::vector<std::string>& plain);

}  // namespace selfcal::awq_format
