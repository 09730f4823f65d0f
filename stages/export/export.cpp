#include "stages/export/export.hpp"

#include <ATen/ATen.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <nlohmann/json.hpp>
#include <set>

#include "base/error.hpp"
#include "stages/export/awq_format.hpp"
#include "stages/export/compressed_tensors.hpp"
#include "stages/export/gptq_format.hpp"
#include "stages/export/sharded_writer.hpp"
#include "storage/dtype.hpp"
#include "storage/layer_scan.hpp"
#include "storage/module_name.hpp"

namespace selfcal {
namespace {

using Json = nlohmann::ordered_json;

/// How a format keeps a quantised layer, and says so in config.json.
struct PackedFormat {
  const char* name;
  NamedTensors (*pack)(const std::string& name, const CompressedLinear& linear);
  std::string (*add_quantization)(const std::string& config_text,
                                  const std::map<std::string, compressed_tensors::Scheme>& modules,
                                  const std::vector<std::string>& plain);
};

/// Nothing for the dense format.
const PackedFormat* packed_format(ExportFormat format) {
  static const PackedFormat compressed{"compressed-tensors", compressed_tensors::pack,
                                       compressed_tensors::add_quantization},
      gptq{"gptq", gptq_format::pack<gptq_format::Version::v1>,
           gptq_format::add_quantization<gptq_format::Version::v1>},
      gptq_v2{"gptq_v2", gptq_format::pack<gptq_format::Version::v2>,
              gptq_format::add_quantization<gptq_format::Version::v2>},
      awq{"awq", awq_format::pack, awq_format::add_quantization};
  switch (format) {
    case ExportFormat::compressed_tensors:
      return &compressed;
    case ExportFormat::gptq:
      return &gptq;
    case ExportFormat::gptq_v2:
      return &gptq_v2;
    case ExportFormat::awq:
      return &awq;
    case ExportFormat::dense:
      return nullptr;
  }
  return nullptr;
}

/// A layer's tensors in the form of the export.
NamedTensors tensors_of(const LayerRecord& record, ExportFormat format) {
  NamedTensors tensors = record.changed;
  for (const auto& [name, linear] : record.linears) {
    const PackedFormat* packed = packed_format(format);
    if (packed != nullptr && linear.codes.defined())
      tensors.merge(packed->pack(name, linear));
    else
      tensors[name] = linear.weight;
  }
  return tensors;
}

/// Reads committed layers one at a time; the last one stays, because a shard may begin in the
/// middle of a layer.
class Layers {
 public:
  Layers(const ExportInputs& inputs, ExportFormat format) : inputs_(inputs), format_(format) {}

  const LayerRecord& record(int64_t number) {
    if (number == number_) return record_;
    const fs::path path = inputs_.job.layer(number);
    std::error_code error;
    if (!fs::exists(path, error))
      fail(ExitCode::data, "{}: layer {} is not committed", path.string(), number);
    record_ = read_layer(path, format_ == ExportFormat::dense);
    number_ = number;
    if (record_.layer != number || record_.job_id != inputs_.job_id)
      fail(ExitCode::data, "{}: layer {} of job {}, expected layer {} of job {}", path.string(),
           record_.layer, printable(record_.job_id), number, inputs_.job_id);
    return record_;
  }
  NamedTensors tensors(int64_t number) { return tensors_of(record(number), format_); }

 private:
  const ExportInputs& inputs_;
  ExportFormat format_;
  LayerRecord record_;
  int64_t number_ = -1;
};

/// What the export will hold, learned in a first pass over the layers.
struct Survey {
  std::vector<std::pair<std::string, TensorEntry>>
      plan;                         // layers in their order, then what none of them holds
  std::vector<std::string> copied;  // tensors taken from the dense model as they are
  std::map<std::string, compressed_tensors::Scheme> quantised;  // by module
  std::vector<std::string> plain;       // modules whose weight matrix stays dense
  std::optional<at::ScalarType> dtype;  // of the compressed layers
};

void expect_dense(const Checkpoint& dense, const std::string& name, const at::Tensor& tensor) {
  if (dense.entry(name).shape != tensor.sizes().vec())
    fail(ExitCode::data, "tensor '{}' is {} in its layer file, {} in {}", printable(name),
         shape_text(tensor.sizes().vec()), shape_text(dense.entry(name).shape),
         dense.file_of(name).string());
}

void survey_layer(const LayerRecord& record, ExportFormat format, const Checkpoint& dense,
                  Survey& survey, std::set<std::string>& replaced) {
  for (const auto& [name, tensor] : record.changed) {
    expect_dense(dense, name, tensor);
    replaced.insert(name);
  }
  for (const auto& [name, linear] : record.linears) {
    expect_dense(dense, name, linear.weight);
    replaced.insert(name);
    const at::ScalarType dtype = linear.weight.scalar_type();
    if (survey.dtype.value_or(dtype) != dtype)
      fail(ExitCode::data, "tensor '{}' is {}, other layers are {}", printable(name),
           dtype_name(dtype), dtype_name(*survey.dtype));
    survey.dtype = dtype;
    if (packed_format(format) != nullptr && linear.codes.defined())
      survey.quantised.emplace(module_of(name), compressed_tensors::scheme_of(linear, name));
    else
      survey.plain.push_back(module_of(name));
  }
  for (const auto& [name, tensor] : tensors_of(record, format))
    survey.plan.emplace_back(name, planned(tensor.scalar_type(), tensor.sizes().vec()));
}

Survey survey_job(const ExportInputs& inputs, ExportFormat format, Layers& layers) {
  Survey survey;
  std::set<std::string> replaced;
  for (int64_t layer = 0; layer < inputs.layers; ++layer)
    survey_layer(layers.record(layer), format, inputs.dense, survey, replaced);
  for (const auto& name : inputs.dense.names()) {
    if (replaced.contains(name)) continue;
    const TensorEntry& entry = inputs.dense.entry(name);
    survey.plan.emplace_back(name, entry);
    survey.copied.push_back(name);
    if (entry.shape.size() == 2) survey.plain.push_back(module_of(name));
  }
  const PackedFormat* packed = packed_format(format);
  if (packed != nullptr && survey.quantised.empty())
    fail(ExitCode::config, "{}: no layer is quantised, so {} has nothing to hold; export dense",
         inputs.job.path().string(), packed->name);
  return survey;
}

const char* config_name(at::ScalarType dtype) {
  switch (dtype) {
    case at::kFloat:
      return "float32";
    case at::kBFloat16:
      return "bfloat16";
    case at::kHalf:
      return "float16";
    default:
      fail(ExitCode::data, "weights of type {}, expected F32, BF16 or F16", dtype_name(dtype));
  }
}

/// config.json with the dtype that the compressed layers have, under the key that the model uses.
std::string config_with_dtype(const std::string& text, at::ScalarType dtype) {
  Json config = Json::parse(text);
  const bool new_key = config.contains("dtype");
  if (new_key) config["dtype"] = config_name(dtype);
  if (!new_key || config.contains("torch_dtype")) config["torch_dtype"] = config_name(dtype);
  return config.dump(2) + "\n";
}

/// Tokenizer, generation settings, chat template, licence, code: all but weights, their index and
/// the config.
void copy_companions(const fs::path& from, const fs::path& to) {
  constexpr std::array<std::string_view, 11> weights{".safetensors", ".bin",  ".pt",        ".pth",
                                                     ".h5",          ".hdf5", ".msgpack",   ".gguf",
                                                     ".onnx",        ".ckpt", ".index.json"};
  for (const auto& entry : fs::directory_iterator(from)) {
    const std::string name = entry.path().filename().string();
    const bool is_weight =
        std::any_of(weights.begin(), weights.end(),
                    [&](std::string_view ending) { return name.ends_with(ending); });
    if (!entry.is_regular_file() || is_weight || name == "config.json" || name.starts_with("."))
      continue;
    write_text_atomically(to / name, read_text(entry.path()));
  }
}

void write_export(const ExportInputs& inputs, ExportFormat format, const fs::path& folder,
                  uint64_t shard_bytes) {
  Layers layers(inputs, format);
  const Survey survey = survey_job(inputs, format, layers);
  std::string config = inputs.dense.config_text();
  if (survey.dtype) config = config_with_dtype(config, *survey.dtype);
  if (const PackedFormat* packed = packed_format(format))
    config = packed->add_quantization(config, survey.quantised, survey.plain);

  ShardedWriter writer(folder, survey.plan, shard_bytes);
  for (int64_t layer = 0; layer < inputs.layers; ++layer)
    for (const auto& [name, tensor] : layers.tensors(layer)) writer.write(name, tensor);
  for (const auto& name : survey.copied)
    writer.write(name, inputs.dense.read(name, inputs.dense.entry(name).shape));
  writer.finish();
  copy_companions(inputs.dense.directory(), folder);
  write_text_atomically(folder / "config.json", config);
}

}  // namespace

ExportFormat export_format_of(const std::string& name) {
  if (name == "compressed-tensors") return ExportFormat::compressed_tensors;
  if (name == "gptq") return ExportFormat::gptq;
  if (name == "gptq_v2") return ExportFormat::gptq_v2;
  if (name == "awq") return ExportFormat::awq;
  if (name == "dense") return ExportFormat::dense;
  fail(ExitCode::config,
       "export format '{}': expected compressed-tensors, gptq, gptq_v2, awq or dense", name);
}

void export_model(const ExportInputs& inputs, ExportFormat format, const fs::path& directory,
                  uint64_t shard_bytes) {
  std::error_code error;
  const fs::path target = fs::absolute(directory).lexically_normal();
  const fs::path folder = target.has_filename() ? target : target.parent_path();
  if (fs::exists(fs::symlink_status(folder, error)))
    fail(ExitCode::usage, "{}: exists already; an export never overwrites", folder.string());
  const fs::path temporary =
      folder.parent_path() / fmt::format(".{}.{}.tmp", folder.filename().string(), ::getpid());
  make_folder(temporary);
  try {
    write_export(inputs, format, temporary, shard_bytes);
    sync_path(temporary);
    fs::rename(temporary, folder);
    sync_path(folder.parent_path());
  } catch (const fs::filesystem_error& failure) {
    fs::remove_all(temporary, error);
    fail(ExitCode::io, "{}: cannot write: {}", folder.string(), failure.code().message());
  } catch (...) {
    fs::remove_all(temporary, error);
    throw;
  }
}

}  // namespace selfcal
