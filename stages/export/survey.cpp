#include "stages/export/survey.hpp"

#include <ATen/ATen.h>

#include <nlohmann/json.hpp>
#include <set>
#include <span>
#include <tuple>

#include "base/error.hpp"
#include "storage/dtype.hpp"
#include "storage/module_name.hpp"
#include "storage/tensor_writer.hpp"

namespace selfcal {
namespace {

/// "model.layers.7." of "model.layers.7.mlp.up_proj.weight", a tensor of layer 7.
std::string block_of(const std::string& name, int64_t layer) {
  const std::string number = fmt::format(".{}.", layer);
  const size_t place = name.find(number);
  return place == std::string::npos ? "" : name.substr(0, place + number.size());
}

/// What a packed layer takes. Layers of one place in their blocks, and of the same types and
/// shapes, take the same: one of them is packed to see it.
class PackedForms {
 public:
  struct Form {
    compressed_tensors::Scheme scheme;
    std::vector<std::pair<std::string, TensorEntry>> tensors;  // by their names in the block
  };

  explicit PackedForms(Layers& layers) : layers_(layers) {}

  const Form& of(int64_t layer, const std::string& name, const CompressedLinear& outline) {
    const size_t block = block_of(name, layer).size();
    const auto [found, is_new] = forms_.try_emplace(name.substr(block) + key_of(outline));
    Form& form = found->second;
    if (!is_new) return form;
    const CompressedLinear& linear = layers_.record(layer).linears.at(name);
    form.scheme = compressed_tensors::scheme_of(linear, name);
    for (const auto& [packed, tensor] : layers_.format()->pack(name, linear))
      form.tensors.emplace_back(packed.substr(block),
                                planned(tensor.scalar_type(), tensor.sizes().vec()));
    return form;
  }

 private:
  static std::string key_of(const CompressedLinear& linear) {
    std::string key =
        fmt::format(": {} bits by {}, {}", linear.bits, linear.group_size, linear.symmetric);
    for (const at::Tensor& tensor :
         {linear.weight, linear.codes, linear.scale, linear.zero, linear.g_idx, linear.mask})
      key += tensor.defined() ? fmt::format("; {} {}", dtype_name(tensor.scalar_type()),
                                            shape_text(tensor.sizes().vec()))
                              : "; none";
    return key;
  }

  Layers& layers_;
  std::map<std::string, Form> forms_;
};

void expect_dense(const Checkpoint& dense, const std::string& name, const at::Tensor& tensor) {
  if (dense.entry(name).shape != tensor.sizes().vec())
    fail(ExitCode::data, "tensor '{}' is {} in its layer file, {} in {}", printable(name),
         shape_text(tensor.sizes().vec()), shape_text(dense.entry(name).shape),
         dense.file_of(name).string());
}

/// The tensors of `layer`, by name.
std::map<std::string, TensorEntry> survey_layer(int64_t layer, const Checkpoint& dense,
                                                const Layers& layers, PackedForms& forms,
                                                Survey& survey, std::set<std::string>& replaced) {
  std::map<std::string, TensorEntry> held;
  const auto keep = [&](const std::string& name, const at::Tensor& tensor) {
    held[name] = planned(tensor.scalar_type(), tensor.sizes().vec());
  };
  const LayerRecord outline = layers.outline(layer);
  for (const auto& [name, tensor] : outline.changed) {
    expect_dense(dense, name, tensor);
    replaced.insert(name);
    keep(name, tensor);
  }
  for (const auto& [name, linear] : outline.linears) {
    expect_dense(dense, name, linear.weight);
    replaced.insert(name);
    const at::ScalarType dtype = linear.weight.scalar_type();
    if (survey.dtype.value_or(dtype) != dtype)
      fail(ExitCode::data, "tensor '{}' is {}, other layers are {}", printable(name),
           dtype_name(dtype), dtype_name(*survey.dtype));
    survey.dtype = dtype;
    const std::string module = module_of(name);
    if (layers.format_of(linear) == nullptr) {
      survey.plain.push_back(module);
      keep(name, linear.weight);
      continue;
    }
    const PackedForms::Form& form = forms.of(layer, name, linear);
    survey.quantised.emplace(module, form.scheme);
    for (const auto& [ending, entry] : form.tensors) held[block_of(name, layer) + ending] = entry;
  }
  return held;
}

}  // namespace

Survey survey_job(const ExportInputs& inputs, Layers& layers) {
  Survey survey;
  std::set<std::string> replaced;
  PackedForms forms(layers);
  for (int64_t layer = 0; layer < inputs.layers; ++layer)
    for (const auto& [name, entry] :
         survey_layer(layer, inputs.dense, layers, forms, survey, replaced))
      survey.plan.emplace_back(name, entry);
  for (const auto& name : inputs.dense.names()) {
    if (replaced.contains(name)) continue;
    const TensorEntry& entry = inputs.dense.entry(name);
    survey.plan.emplace_back(name, entry);
    survey.copied.push_back(name);
    if (entry.shape.size() == 2) survey.plain.push_back(module_of(name));
  }
  if (layers.format() != nullptr && survey.quantised.empty())
    fail(ExitCode::config, "{}: no layer is quantised, so {} has nothing to hold; export dense",
         inputs.job.path().string(), layers.format()->name);
  return survey;
}

void share_plan(const Communicator& ranks, Survey& survey) {
  nlohmann::json message;
  if (ranks.rank() == 0) {
    message["copied"] = survey.copied;
    for (const auto& [name, entry] : survey.plan)
      message["plan"].push_back({name, dtype_name(entry.dtype), entry.shape});
  }
  const std::string text = ranks.rank() == 0 ? message.dump() : std::string();
  const auto first = ranks.all_gather(std::as_bytes(std::span(text))).front();
  if (ranks.rank() == 0) return;
  const auto* begin = reinterpret_cast<const char*>(first.data());
  message = nlohmann::json::parse(begin, begin + first.size());
  message["copied"].get_to(survey.copied);
  for (const auto& [name, dtype, shape] :
       message["plan"]
           .get<std::vector<std::tuple<std::string, std::string, std::vector<int64_t>>>>())
    survey.plan.emplace_back(name, planned(dtype_of_name(dtype).value(), shape));
}

}  // namespace selfcal
