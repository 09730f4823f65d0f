// The GPTQ checkpoint format: version 1, as AutoGPTQ wrote it and GPTQModel and vLLM read it, and
// GPTQModel's version 2.
#pragma once
#include "stages/export/compressed_tensors.hpp"

namespace selfcal::gptq_format {

using compressed_tensors::Scheme;

/// v1 keeps zero - 1 and so cannot hold a zero of 0; v2 keeps the zero as it is.
enum class Version { v1, v2 };

/// The tensors that replace `<module>.weight`: qweight int32 [columns * bits / 32, rows] (codes
/// along the input, low bits first), qzeros int32 [groups, rows * bits / 32] (along the output),
/// scales float16 [groups, rows], g_idx int32 [columns]. A zero that the version cannot hold,
/// scales that float16 cannot hold, bits other than 2, 3, 4 and 8, or sizes that do not fill words:
/// ExitCode::config.
template <Version version>
NamedTensors pack(const std::string& name, const CompressedLinear& linear);

/// config.json of the dense model with quantization_config added: the commonest scheme for all,
/// others and plain modules of the blocks by name.
template <Version version>
std::string add_quantization(const std::string& config_text,
                             const std::map<std::string, Scheme>& modules,
                             const std::vector<std::string>& plain);

}  // namespace selfcal::gptq_format
