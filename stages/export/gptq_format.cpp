#include "stages/export/gptq_format.hpp"

#include <ATen/ATen.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "base/error.hpp"
#include "stages/export/half_scales.hpp"
#include "stages/export/module_rules.hpp"
#include "storage/module_name.hpp"
#include "storage/packing.hpp"

namespace selfcal::gptq_format {
namespace {

using Json = nlohmann::ordered_json;

/// Codes below 2^bits, uint8 [n, count], as 32-bit words: int32 [n, count * bits / 32].
at::Tensor words_of(const at::Tensor& codes, int bits) {
  return pack_codes(codes.contiguous(), bits).view(at::kInt);
}

void check(const std::string& name, const CompressedLinear& linear, Version version) {
  const int bits = linear.bits;
  if (bits != 2 && bits != 3 && bits != 4 && bits != 8)
    fail(ExitCode::config, "{}: {} bits, the gptq format has 2, 3, 4 and 8", name, bits);
  const int64_t rows = linear.weight.size(0), columns = linear.weight.size(1);
  if (rows * bits % 32 != 0 || columns * bits % 32 != 0)
    fail(ExitCode::config, "{}: {}x{} weights of {} bits do not fill words of 32 bits", name, rows,
         columns, bits);
  if (version == Version::v1 && linear.zero.defined() && linear.zero.eq(0).any().item<bool>())
    fail(ExitCode::config,
         "{}: a zero point is 0, which version 1 of the gptq format cannot hold; compress with "
         "symmetric: true, or export gptq_v2, compressed-tensors or awq",
         name);
}

Json settings_of(const Scheme& scheme) {
  return {{"bits", scheme.bits},
          {"group_size", scheme.group_size == 0 ? -1 : scheme.group_size},
          {"sym", scheme.symmetric},
          {"desc_act", scheme.group_index}};
}

}  // namespace

template <Version version>
NamedTensors pack(const std::string& name, const CompressedLinear& linear) {
  check(name, linear, version);
  const std::string module = module_of(name);
  const int64_t columns = linear.weight.size(1), groups = linear.scale.size(1);
  NamedTensors tensors;
  tensors[module + ".qweight"] = linear.codes.contiguous().view(at::kInt).t().contiguous();
  tensors[module + ".qzeros"] =
      words_of((zero_points(linear) - (version == Version::v1 ? 1 : 0)).t(), linear.bits);
  tensors[module + ".scales"] = half_scales(linear, name);
  tensors[module + ".g_idx"] = linear.g_idx.defined()
                                   ? linear.g_idx
                                   : at::arange(columns, at::kInt)
                                         .floor_divide(groups == 1 ? columns : linear.group_size)
                                         .to(at::kInt);
  return tensors;
}

template <Version version>
std::string add_quantization(const std::string& config_text,
                             const std::map<std::string, Scheme>& modules,
                             const std::vector<std::string>& plain) {
  std::map<Scheme, int64_t> uses;
  for (const auto& [module, scheme] : modules) ++uses[scheme];
  const Scheme common =
      std::ranges::max_element(uses, {}, [](const auto& use) { return use.second; })->first;
  Json dynamic = Json::object();
  for (const auto& [module, scheme] : modules)
    if (scheme != common) dynamic["+:" + module_rules::exactly(module)] = settings_of(scheme);
  for (const auto& module : module_rules::inside_blocks(plain))
    dynamic[module_rules::left_out(module)] = Json::object();

  Json quantization = settings_of(common);
  quantization["quant_method"] = "gptq";
  quantization["checkpoint_format"] = version == Version::v1 ? "gptq" : "gptq_v2";
  quantization["pack_dtype"] = "int32";
  quantization["lm_head"] = false;
  if (!dynamic.empty()) quantization["dynamic"] = dynamic;
  Json config = Json::parse(config_text);
  config["quantization_config"] = quantization;
  return config.dump(2) + "\n";
}

template NamedTensors pack<Version::v1>(const std::string&, const CompressedLinear&);
template NamedTensors pack<Version::v2>(const std::string&, const CompressedLinear&);
template std::string add_quantization<Version::v1>(const std::string&,
                                                   const std::map<std::string, Scheme>&,
                                                   const std::vector<std::string>&);
template std::string add_quantization<Version::v2>(const std::string&,
                                                   const std::map<std::string, Scheme>&,
                                                   const std::vector<std::string>&);

}  // namespace selfcal::gptq_format
