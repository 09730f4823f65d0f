// The pack-quantized format of compressed-tensors: which tensors a quantised layer becomes, and
// what config.json says.
#pragma once
#include <map>
#include <string>
#include <vector>

#include "storage/layer_file.hpp"
#include "storage/tensor_file.hpp"
#include "storage/tensor_writer.hpp"

namespace selfcal::compressed_tensors {

/// How a layer is quantised, as config.json describes it. Layers of equal schemes share a config
/// group.
struct Scheme {
  int bits = 0;
  int64_t group_size = 0;  // 0: one scale a row ("channel")
  bool symmetric = true;
  bool group_index = false;  // columns are assigned to groups one by one
  // NOLINTNEXTLINE(modernize-use-nullptr): it takes the comparison's 0 for a pointer
  auto operator<=>(const Scheme&) const = default;
};

/// ExitCode::data, beginning with `name`, where groups do not divide the columns.
Scheme scheme_of(const CompressedLinear& linear, const std::string& name);

/// The tensors that replace `<module>.weight`: weight_packed int32 [rows, words], weight_scale
/// [rows, groups] in the weight's dtype, weight_shape int64 [2], weight_zero_point int32 [words of
/// rows, groups] when asymmetric. Columns that are assigned to groups one by one, which
/// transformers does not load, and scales that the weight's dtype cannot hold: ExitCode::config.
NamedTensors pack(const std::string& name, const CompressedLinear& linear);

/// config.json of the dense model with quantization_config added. `modules`: scheme of each
/// quantised module; `plain`: modules with a weight matrix that stays dense.
std::string add_quantization(const std::string& config_text,
                             const std::map<std::string, Scheme>& modules,
                             const std::vector<std::string>& plain);

}  // namespace selfcal::compressed_tensors
