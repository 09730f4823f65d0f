#include "stages/export/export.hpp"

#include <ATen/ATen.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <functional>
#include <nlohmann/json.hpp>

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

/// The part of one of `writers`, which read and pack side by side: some layers, and some rows of
/// every tensor that no layer holds.
class ExportPart {
 public:
  ExportPart(const ExportInputs& inputs, ExportFormat format, const fs::path& folder,
             uint64_t shard_bytes, int writer, int writers)
      : inputs_(inputs),
        layers_(inputs, format),
        survey_(survey_job(inputs, layers_)),
        files_(folder, survey_.plan, shard_bytes),
        folder_(folder),
        writer_(writer),
        writers_(writers) {}

  /// One writer's: the files that all write into, and what is beside them.
  void begin() const {
    std::string config = inputs_.dense.config_text();
    if (survey_.dtype) config = config_with_dtype(config, *survey_.dtype);
    if (const PackedFormat* packed = layers_.format())
      config = packed->add_quantization(config, survey_.quantised, survey_.plain);
    write_text_atomically(folder_ / "config.json", config);
    copy_companions(inputs_.dense.directory(), folder_);
    files_.begin();
  }

  /// Returns the bytes that were written.
  uint64_t write() {
    for (int64_t layer = share(inputs_.layers, writer_); layer < share(inputs_.layers, writer_ + 1);
         ++layer)
      for (const auto& [name, tensor] : layers_.tensors(layer)) files_.write(name, tensor);
    for (const auto& name : survey_.copied) copy(name);
    return files_.close();
  }

  /// One writer's, when all have written so many bytes.
  void finish(uint64_t written) const { files_.finish(written); }

 private:
  int64_t share(int64_t count, int64_t writer) const { return count * writer / writers_; }

  void copy(const std::string& name) {
    const TensorEntry& entry = inputs_.dense.entry(name);
    if (entry.shape.empty()) {
      if (writer_ == 0) files_.write(name, inputs_.dense.read(name, {}));
      return;
    }
    const int64_t rows = entry.shape[0], end = share(rows, writer_ + 1),
                  step = copied_rows(rows, static_cast<int64_t>(entry.bytes));
    for (int64_t first = share(rows, writer_); first < end; first += step)
      files_.write_rows(name, first,
                        inputs_.dense.read_rows(name, first, std::min(step, end - first)));
  }

  const ExportInputs& inputs_;
  Layers layers_;
  Survey survey_;
  ShardedWriter files_;
  fs::path folder_;
  int writer_, writers_;
};

/// Runs what all ranks agree on.
using Together = std::function<void(const std::function<void()>&)>;

/// Collective. No more ranks than there are layers take part.
void write_together(const Communicator& ranks, const Together& together, const ExportInputs& inputs,
                    ExportFormat format, const fs::path& folder, uint64_t shard_bytes) {
  const auto writers = static_cast<int>(std::clamp<int64_t>(inputs.layers, 1, ranks.size()));
  std::optional<ExportPart> part;
  together([&] {
    if (ranks.rank() < writers)
      part.emplace(inputs, format, folder, shard_bytes, ranks.rank(), writers);
    if (ranks.rank() == 0) part->begin();
  });
  int64_t written = 0;
  together([&] {
    if (part) written = static_cast<int64_t>(part->write());
  });
  ranks.all_reduce(std::span(&written, 1), ReduceOp::sum);
  together([&] {
    if (ranks.rank() == 0) part->finish(static_cast<uint64_t>(written));
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
