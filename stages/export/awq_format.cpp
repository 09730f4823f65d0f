#include "stages/export/awq_format.hpp"

#include <ATen/ATen.h>

#include <array>
#include <nlohmann/json.hpp>

#include "base/error.hpp"
#include "stages/export/half_scales.hpp"
#include "stages/export/module_rules.hpp"
#include "storage/module_name.hpp"
#include "storage/packing.hpp"

namespace selfcal::awq_format {
namespace {

using Json = nlohmann::ordered_json;

constexpr int bits = 4;
constexpr std::array<int64_t, 8> order{0, 2, 4, 6, 1, 3, 5, 7};

/// Codes uint8 [n, rows] -> int32 [n, rows / 8].
at::Tensor interleaved_words(const at::Tensor& codes) {
  const int64_t n = codes.size(0), rows = codes.size(1);
  const at::Tensor places = at::tensor(at::ArrayRef<int64_t>(order.data(), order.size()));
  const at::Tensor reordered =
      codes.contiguous().view({n, rows / 8, 8}).index_select(2, places).view({n, rows});
  return pack_codes(reordered, bits).view(at::kInt);
}

/// The layer of NeoX behind which the format's readers scale the activation, by a tensor of its
/// own.
bool is_before_scaled_activation(const std::string& module) {
  return module.ends_with(".mlp.dense_h_to_4h");
}

}  // namespace

NamedTensors pack(const std::string& name, const CompressedLinear& linear) {
  const int64_t rows = linear.weight.size(0), columns = linear.weight.size(1);
  if (linear.bits != bits)
    fail(ExitCode::config, "{}: {} bits, the awq format has 4", name, linear.bits);
  if (linear.g_idx.defined())
    fail(ExitCode::config,
         "{}: columns are assigned to groups one by one (act_order: dynamic), which the awq format "
         "cannot hold; export gptq, gptq_v2 or dense",
         name);
  if (rows % 8 != 0)
    fail(ExitCode::config, "{}: {} outputs, the awq format needs a multiple of 8", name, rows);
  const std::string module = module_of(name);
  NamedTensors tensors;
  tensors[module + ".qweight"] = interleaved_words(unpack_codes(linear.codes, bits, columns).t());
  tensors[module + ".qzeros"] = interleaved_words(zero_points(linear).t());
  tensors[module + ".scales"] = half_scales(linear, name);
  if (is_before_scaled_activation(module))
    tensors[module.substr(0, module.rfind('.')) + ".act.scales"] = at::ones({rows}, at::kHalf);
  return tensors;
}

std::string add_quantization(const std::string& config_text,
                             const std::map<std::string, Scheme>& modules,
                             const std::vector<std::string>& plain) {
  const auto& [first_module, first] = *modules.begin();
  for (const auto& [module, scheme] : modules)
    if (scheme.group_size != first.group_size)
      fail(ExitCode::config,
           "{}: groups of {}, {} has {} (0: whole rows); the awq format has one group size for all",
           module, scheme.group_size, first_module, first.group_size);
  const std::vector<std::string> left = module_rules::inside_blocks(plain);
  Json dynamic = Json::object();  // GPTQModel reads this instead of modules_to_not_convert
  for (const auto& module : left) {
    if (is_before_scaled_activation(module))
      fail(ExitCode::config,
           "{}: is not quantised; readers of the awq format expect a scaled activation behind it, "
           "which would have no scale; export gptq or gptq_v2",
           module);
    dynamic[module_rules::left_out(module)] = Json::object();
  }
  Json config = Json::parse(config_text);
  Json quantization = {{"quant_method", "awq"},
                       {"version", "gemm"},
                       {"bits", bits},
                       {"group_size", first.group_size == 0 ? -1 : first.group_size},
                       {"zero_point", true},
                       {"modules_to_not_convert", left.empty() ? Json(nullptr) : Json(left)}};
  if (!left.empty()) quantization["dynamic"] = dynamic;
  config["quantization_config"] = quantization;
  return config.dump(2) + "\n";
}

}  // namespace selfcal::awq_format
