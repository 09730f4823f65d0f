#include "stages/model/model.hpp"

#include <ATen/ATen.h>

#include "base/error.hpp"
#include "base/names.hpp"
#include "stages/model/family.hpp"
#include "storage/dtype.hpp"

namespace selfcal {
namespace {

std::string read_architecture(const ModelConfig& config) {
  const auto names = config.texts("architectures");
  if (names.empty()) fail(ExitCode::data, "{}: no key 'architectures'", config.where());
  if (!families().contains(names.front()))
    fail(ExitCode::data, "{}: architecture '{}' is not supported (supported: {})", config.where(),
         printable(names.front()), names_of(families()));
  return names.front();
}

at::ScalarType float_type(const std::string& name, const std::string& where, ExitCode code) {
  if (name == "float32") return at::kFloat;
  if (name == "bfloat16") return at::kBFloat16;
  if (name == "float16") return at::kHalf;
  fail(code, "{}: dtype '{}', expected float32, bfloat16 or float16", where, printable(name));
}

/// The type that the config names (new or old key), else the type of the checkpoint's tensors.
at::ScalarType read_stored_dtype(const ModelConfig& config, const Checkpoint* checkpoint) {
  for (const char* key : {"dtype", "torch_dtype"})
    if (config.contains(key))
      return float_type(config.text(key, ""), config.where(), ExitCode::data);
  if (!checkpoint) return at::kFloat;
  const auto names = checkpoint->names();
  return names.empty() ? at::kFloat : checkpoint->entry(names.front()).dtype;
}

at::ScalarType choose_compute_dtype(at::ScalarType stored, const std::string& requested) {
  if (requested == "auto") return stored == at::kBFloat16 ? at::kBFloat16 : at::kFloat;
  const at::ScalarType chosen = float_type(requested, "model", ExitCode::config);
  if (chosen == at::kHalf)
    fail(ExitCode::config, "dtype float16: CPUs compute in float32 or bfloat16");
  return chosen;
}

ModelShape read_shape(const ModelConfig& config, const Checkpoint* checkpoint,
                      const std::string& dtype) {
  ModelShape shape;
  shape.architecture = read_architecture(config);
  if (config.contains("quantization_config"))
    fail(ExitCode::data,
         "{}: the model is already quantised (quantization_config); expected float weights",
         config.where());
  shape.layers = config.integer("num_hidden_layers");
  shape.hidden = config.integer("hidden_size");
  shape.vocabulary = config.integer("vocab_size");
  shape.maximum_length = config.integer("max_position_embeddings", 2048);
  const int64_t heads = config.integer("num_attention_heads");
  shape.key_value_heads = config.integer("num_key_value_heads", heads);
  if (heads % shape.key_value_heads != 0)
    fail(ExitCode::data, "{}: {} attention heads cannot share {} key-value heads", config.where(),
         heads, shape.key_value_heads);
  shape.head_dim = config.integer("head_dim", std::max<int64_t>(1, shape.hidden / heads));
  if (!config.contains("head_dim") && shape.hidden % heads != 0)
    fail(ExitCode::data, "{}: hidden_size {} is not a multiple of {} attention heads",
         config.where(), shape.hidden, heads);
  const auto bos = config.token_ids("bos_token_id");
  if (!bos.empty()) shape.bos_token = bos.front();
  shape.eos_tokens = config.token_ids("eos_token_id");
  shape.tied_embeddings =
      config.flag("tie_word_embeddings", families().at(shape.architecture).ties_embeddings);
  shape.stored_dtype = read_stored_dtype(config, checkpoint);
  shape.compute_dtype = choose_compute_dtype(shape.stored_dtype, dtype);
  return shape;
}

/// Files that were saved without the head lack the first part of all names ("model."), as those of
/// OPT do.
void leave_out_base_name(ModelParts& parts, const Checkpoint& checkpoint) {
  const std::string embedding = parts.embedding + ".weight";
  const std::string base = embedding.substr(0, embedding.find('.') + 1);
  if (checkpoint.contains(embedding) || !checkpoint.contains(embedding.substr(base.size()))) return;
  std::vector<std::string*> names = {&parts.embedding, &parts.block_prefix, &parts.project_in,
                                     &parts.project_out};
  if (parts.positions) names.push_back(&parts.positions->name);
  if (parts.final_norm) names.push_back(&parts.final_norm->name);
  for (std::string* name : names)
    if (name->starts_with(base)) name->erase(0, base.size());
}

std::unique_ptr<Model> build_model(const ModelConfig& config,
                                   std::shared_ptr<const Checkpoint> checkpoint,
                                   const std::string& dtype, kernels::Context context) {
  ModelShape shape = read_shape(config, checkpoint.get(), dtype);
  ModelParts parts = families().at(shape.architecture).parts(config, shape, context);
  if (checkpoint) leave_out_base_name(parts, *checkpoint);
  return std::make_unique<CausalModel>(std::move(shape), std::move(checkpoint), context,
                                       std::move(parts));
}

}  // namespace

void Model::check_entry(const std::string& name, const std::vector<int64_t>& shape) const {
  const TensorEntry& entry = checkpoint_->entry(name);
  const std::string file = checkpoint_->file_of(name).string();
  if (entry.dtype != at::kFloat && entry.dtype != at::kBFloat16 && entry.dtype != at::kHalf)
    fail(ExitCode::data, "{}: tensor '{}' is {}, expected F32, BF16 or F16", file, printable(name),
         dtype_name(entry.dtype));
  if (entry.shape != shape)
    fail(ExitCode::data, "{}: tensor '{}' is {}, expected {}", file, printable(name),
         shape_text(entry.shape), shape_text(shape));
}

at::Tensor Model::read_weight(const std::string& name, const std::vector<int64_t>& shape) const {
  check_entry(name, shape);
  return converted(checkpoint_->read(name, shape), name);
}

at::Tensor Model::converted(const at::Tensor& stored, const std::string& name) const {
  at::Tensor weight = stored.to(shape_.compute_dtype);
  if (!kernels::all_finite(context_, weight))
    fail(ExitCode::data, "{}: tensor '{}' holds NaN or infinite values",
         checkpoint_->file_of(name).string(), printable(name));
  return weight;
}

BlockWeights Model::read_block(int64_t layer) const {
  const std::string prefix = block_prefix(layer);
  BlockWeights weights;
  for (const auto& [name, shape] : block(layer).spec().parameters)
    weights[name] = read_weight(prefix + name, shape);
  return weights;
}

OuterWeights Model::read_outer(OuterParts parts) const {
  OuterWeights outer;
  for (const auto& [name, shape] : outer_parameters(parts)) outer[name] = read_weight(name, shape);
  return place(outer, device());
}

at::Tensor Model::read_words(int64_t first, int64_t count) const {
  return converted(checkpoint_->read_rows(word_table(), first, count), word_table());
}

KeyValueCache Model::make_cache(int64_t sequences, int64_t capacity) const {
  const auto zeros = [&] {
    return at::zeros({sequences, shape_.key_value_heads, capacity, shape_.head_dim},
                     at::device(device().memory).dtype(shape_.compute_dtype));
  };
  return {zeros(), zeros()};
}

void check_range(const at::Tensor& ids, int64_t count, const char* what) {
  if (ids.numel() == 0) return;
  const auto [smallest, largest] = at::aminmax(ids);
  if (smallest.item<int64_t>() < 0 || largest.item<int64_t>() >= count)
    fail(ExitCode::data, "{} from {} to {}, expected 0 to {}", what, smallest.item<int64_t>(),
         largest.item<int64_t>(), count - 1);
}

std::unique_ptr<Model> open_model(const fs::path& directory, const std::string& dtype,
                                  kernels::Context context) {
  auto checkpoint = std::make_shared<const Checkpoint>(directory);
  const ModelConfig config(directory / "config.json", checkpoint->config_text());
  return build_model(config, std::move(checkpoint), dtype, context);
}

std::unique_ptr<Model> model_of_config(const fs::path& config_json, const std::string& dtype,
                                       kernels::Context context) {
  return build_model(ModelConfig(config_json, read_text(config_json)), nullptr, dtype, context);
}

}  // namespace selfcal
