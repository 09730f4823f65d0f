#include "stages/export/export.hpp"

#include <ATen/ATen.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <functional>
#include <nlohmann/json.hpp>
#include <optional>

#include "base/error.hpp"
#include "comm/agreement.hpp"
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

/// What an export has beside tensors.
void write_companions(const ExportInputs& inputs, const Layers& layers, const Survey& survey,
                      const fs::path& folder) {
  std::string config = inputs.dense.config_text();
  if (survey.dtype) config = config_with_dtype(config, *survey.dtype);
  if (const PackedFormat* packed = layers.format())
    config = packed->add_quantization(config, survey.quantised, survey.plain);
  write_text_atomically(folder / "config.json", config);
  copy_companions(inputs.dense.directory(), folder);
}

/// Some runs of rows of a tensor that no layer holds.
void copy_rows(const Checkpoint& dense, const std::string& name, int64_t rank, int64_t ranks,
               ShardedWriter& files) {
  const TensorEntry& entry = dense.entry(name);
  if (entry.shape.empty()) {
    if (rank == 0) files.write(name, dense.read(name, {}));
    return;
  }
  const int64_t rows = entry.shape[0], step = copied_rows(rows, static_cast<int64_t>(entry.bytes));
  for (int64_t first = rank * step; first < rows; first += ranks * step)
    files.write_rows(name, first, dense.read_rows(name, first, std::min(step, rows - first)));
}

/// Runs what all ranks agree on.
using Together = std::function<void(const std::function<void()>&)>;

/// Collective.
void write_together(const Communicator& ranks, const Together& together, const ExportInputs& inputs,
                    ExportFormat format, const fs::path& folder, uint64_t shard_bytes) {
  const int64_t rank = ranks.rank(), size = ranks.size();
  Layers layers(inputs, format);
  Survey survey;
  together([&] {
    if (rank != 0) return;
    survey = survey_job(inputs, layers);
    write_companions(inputs, layers, survey, folder);
  });
  share_plan(ranks, survey);
  std::optional<ShardedWriter> files;
  together([&] {
    files.emplace(folder, survey.plan, shard_bytes);
    if (rank == 0) files->begin();
  });
  int64_t written = 0;
  together([&] {
    for (int64_t layer = inputs.layers * rank / size; layer < inputs.layers * (rank + 1) / size;
         ++layer)
      for (const auto& [name, tensor] : layers.tensors(layer)) files->write(name, tensor);
    for (const auto& name : survey.copied) copy_rows(inputs.dense, name, rank, size, *files);
    written = static_cast<int64_t>(files->close());
  });
  ranks.all_reduce(std::span(&written, 1), ReduceOp::sum);
  together([&] {
    if (rank == 0) files->finish(static_cast<uint64_t>(written));
  });
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

void export_model(const Communicator& ranks, const ExportInputs& inputs, ExportFormat format,
                  const fs::path& directory, uint64_t shard_bytes) {
  const bool first = ranks.rank() == 0;
  const fs::path target = fs::absolute(directory).lexically_normal();
  const fs::path folder = target.has_filename() ? target : target.parent_path();
  int64_t process = ::getpid();
  ranks.broadcast(std::as_writable_bytes(std::span(&process, 1)), 0);
  const fs::path temporary =
      folder.parent_path() / fmt::format(".{}.{}.tmp", folder.filename().string(), process);
  const Together together = [&](const std::function<void()>& work) {
    agree(ranks, [&] {
      try {
        work();
      } catch (const fs::filesystem_error& failure) {
        fail(ExitCode::io, "{}: cannot write: {}", folder.string(), failure.code().message());
      }
    });
  };
  std::error_code error;
  together([&] {
    if (!first) return;
    if (fs::exists(fs::symlink_status(folder, error)))
      fail(ExitCode::usage, "{}: exists already; an export never overwrites", folder.string());
    make_folder(temporary);
  });
  try {
    write_together(ranks, together, inputs, format, temporary, shard_bytes);
    together([&] {
      if (!first) return;
      sync_path(temporary);
      fs::rename(temporary, folder);
      sync_path(folder.parent_path());
    });
  } catch (...) {
    if (first) fs::remove_all(temporary, error);
    throw;
  }
}

}  // namespace selfcal
