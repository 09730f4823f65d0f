#include "stages/export/export.hpp"

#include <ATen/ATen.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <nlohmann/json.hpp>

#include "base/error.hpp"
#include "stages/export/layers.hpp"
#include "stages/export/sharded_writer.hpp"
#include "stages/export/survey.hpp"
#include "storage/copied_rows.hpp"
#include "storage/dtype.hpp"

namespace selfcal {
namespace {

using Json = nlohmann::ordered_json;

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

void copy_tensor(const Checkpoint& dense, const std::string& name, ShardedWriter& writer) {
  const TensorEntry& entry = dense.entry(name);
  const int64_t rows = entry.shape.empty() ? 1 : entry.shape[0];
  const int64_t step = copied_rows(rows, static_cast<int64_t>(entry.bytes));
  if (step >= rows) return writer.write(name, dense.read(name, entry.shape));
  for (int64_t first = 0; first < rows; first += step)
    writer.write_rows(name, dense.read_rows(name, first, std::min(step, rows - first)));
}

void write_export(const ExportInputs& inputs, ExportFormat format, const fs::path& folder,
                  uint64_t shard_bytes) {
  Layers layers(inputs, format);
  const Survey survey = survey_job(inputs, layers);
  std::string config = inputs.dense.config_text();
  if (survey.dtype) config = config_with_dtype(config, *survey.dtype);
  if (const PackedFormat* packed = layers.format())
    config = packed->add_quantization(config, survey.quantised, survey.plain);

  ShardedWriter writer(folder, survey.plan, shard_bytes);
  for (int64_t layer = 0; layer < inputs.layers; ++layer)
    for (const auto& [name, tensor] : layers.tensors(layer)) writer.write(name, tensor);
  for (const auto& name : survey.copied) copy_tensor(inputs.dense, name, writer);
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
