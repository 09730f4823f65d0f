#include "stages/export/compressed_tensors.hpp"

#include <ATen/ATen.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "base/error.hpp"
#include "storage/dtype.hpp"
#include "storage/module_name.hpp"
#include "storage/packing.hpp"

namespace selfcal::compressed_tensors {
namespace {

using Json = nlohmann::ordered_json;

/// Bytes of each row, padded with zeros to whole 32-bit words: int32 [rows, words].
at::Tensor as_words(const at::Tensor& packed) {
  const int64_t rows = packed.size(0), bytes = packed.size(1), words = (bytes + 3) / 4;
  at::Tensor padded = at::zeros({rows, words * 4}, at::kByte);
  padded.narrow(1, 0, bytes).copy_(packed);
  return padded.view(at::kInt);
}

/// Ours are codes without sign; the format's are signed and packed with an offset of 2^(bits - 1):
/// the same bits.
at::Tensor packed_zeros(const CompressedLinear& linear) {
  return as_words(pack_codes(linear.zero.t().contiguous(), linear.bits)).t().contiguous();
}

at::Tensor scale_in(at::ScalarType dtype, const at::Tensor& scale, const std::string& name) {
  const at::Tensor converted = scale.to(dtype);
  if (!at::equal(converted.to(at::kDouble), scale.to(at::kDouble)))
    fail(ExitCode::config,
         "{}: scales are {}, which a loader rounds to the model's {}: weights would differ; "
         "compress with scale_dtype: "
         "auto, or export dense",
         name, dtype_name(scale.scalar_type()), dtype_name(dtype));
  return converted;
}

Json weights_of(const Scheme& scheme) {
  Json weights{{"num_bits", scheme.bits},
               {"type", "int"},
               {"symmetric", scheme.symmetric},
               {"strategy", scheme.group_size == 0 ? "channel" : "group"},
               {"group_size", nullptr},
               {"actorder", nullptr},
               {"dynamic", false}};
  if (scheme.group_size != 0) weights["group_size"] = scheme.group_size;
  return weights;
}

}  // namespace

Scheme scheme_of(const CompressedLinear& linear, const std::string& name) {
  const int64_t columns = linear.weight.size(1), groups = linear.scale.size(1);
  Scheme scheme{linear.bits, 0, linear.symmetric, linear.g_idx.defined()};
  if (groups > 1) {
    scheme.group_size = linear.group_size;
    if (scheme.group_size * groups != columns)
      fail(ExitCode::data, "{}: {} groups of {} columns, expected {} columns in all", name, groups,
           scheme.group_size, columns);
  }
  const int middle = 1 << (linear.bits - 1);
  if (scheme.symmetric && linear.zero.defined() && !linear.zero.eq(middle).all().item<bool>())
    fail(ExitCode::data, "{}: symmetric, but a zero is not {}", name, middle);
  return scheme;
}

NamedTensors pack(const std::string& name, const CompressedLinear& linear) {
  const std::string module = module_of(name);
  const Scheme scheme = scheme_of(linear, name);
  if (scheme.group_index)
    fail(ExitCode::config,
         "{}: columns are assigned to groups one by one (act_order: dynamic), which "
         "compressed-tensors cannot hold; export gptq, gptq_v2 or dense",
         name);
  NamedTensors tensors;
  tensors[module + ".weight_packed"] = as_words(linear.codes);
  tensors[module + ".weight_scale"] = scale_in(linear.weight.scalar_type(), linear.scale, name);
  tensors[module + ".weight_shape"] = at::tensor(linear.weight.sizes(), at::kLong);
  if (!scheme.symmetric) tensors[module + ".weight_zero_point"] = packed_zeros(linear);
  return tensors;
}

std::string add_quantization(const std::string& config_text,
                             const std::map<std::string, Scheme>& modules,
                             const std::vector<std::string>& plain) {
  std::map<Scheme, std::vector<std::string>> by_scheme;
  for (const auto& [module, scheme] : modules) by_scheme[scheme].push_back(module);
  Json groups = Json::object();
  for (const auto& [scheme, members] : by_scheme) {
    // One scheme for all: the common form, by class. Several: every group names its modules.
    const std::vector<std::string> targets =
        by_scheme.size() == 1 ? std::vector<std::string>{"Linear"} : members;
    groups["group_" + std::to_string(groups.size())] = {{"targets", targets},
                                                        {"weights", weights_of(scheme)},
                                                        {"input_activations", nullptr},
                                                        {"output_activations", nullptr},
                                                        {"format", "pack-quantized"}};
  }
  std::vector<std::string> ignore = plain;
  // The head of a model with tied embeddings is a module without a tensor of its own.
  if (!modules.contains("lm_head")) ignore.emplace_back("lm_head");
  std::sort(ignore.begin(), ignore.end());
  ignore.erase(std::unique(ignore.begin(), ignore.end()), ignore.end());

  Json config = Json::parse(config_text);
  config["quantization_config"] = {{"quant_method", "compressed-tensors"},
                                   {"format", "pack-quantized"},
                                   {"quantization_status", "compressed"},
                                   {"config_groups", groups},
                                   {"ignore", ignore},
                                   {"kv_cache_scheme", nullptr},
                                   {"global_compression_ratio", nullptr}};
  return config.dump(2) + "\n";
}

}  // namespace selfcal::compressed_tensors
