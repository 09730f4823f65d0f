#include "storage/verify.hpp"

#include <ATen/ATen.h>
#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <set>

#include "base/error.hpp"
#include "base/hash.hpp"
#include "storage/calibration_file.hpp"
#include "storage/dtype.hpp"
#include "storage/gathered_checkpoint.hpp"
#include "storage/hdf5.hpp"
#include "storage/job_queue.hpp"
#include "storage/layer_file.hpp"
#include "storage/tensor_hash.hpp"

namespace selfcal {
namespace {

/// Runs a check; what it throws becomes a problem.
template <class Check>
bool attempt(Verdict& verdict, Check&& check) {
  try {
    check();
    return true;
  } catch (const Error& error) {
    verdict.problems.emplace_back(error.what());
  } catch (const std::exception& error) {
    verdict.problems.emplace_back(fmt::format("unexpected: {}", printable(error.what())));
  }
  return false;
}

/// Regular files of a folder, sorted; unfinished ones are named in the verdict and left out.
std::vector<fs::path> files_of(const fs::path& folder, Verdict& verdict) {
  std::vector<fs::path> files;
  std::error_code error;
  for (const auto& entry : fs::directory_iterator(folder, error)) {
    if (entry.path().extension() == ".tmp")
      verdict.lines.push_back(
          fmt::format("{}: left by a writer that was killed", entry.path().string()));
    else if (entry.is_regular_file(error))
      files.push_back(entry.path());
  }
  std::sort(files.begin(), files.end());
  return files;
}

/// 7 for "0007.h5"; -1 for another name.
int64_t number_of(const fs::path& file) {
  const std::string stem = file.stem().string();
  int64_t number = -1;
  const auto [end, error] = std::from_chars(stem.data(), stem.data() + stem.size(), number);
  const bool is_number =
      error == std::errc() && end == stem.data() + stem.size() && file.extension() == ".h5";
  return is_number && number >= 0 ? number : -1;
}

/// The dense tensor is still the one whose bytes were hashed when it was read, in its own or in the
/// compute dtype.
bool is_source(const at::Tensor& tensor, const std::string& hash) {
  for (const at::ScalarType dtype : {tensor.scalar_type(), at::kFloat, at::kBFloat16}) {
    const at::Tensor bytes = tensor.to(dtype).contiguous();
    if (Hasher().bytes(bytes.const_data_ptr(), bytes.nbytes()).digest() == hash) return true;
  }
  return false;
}

void check_against_dense(const fs::path& file, const LayerRecord& record, const Checkpoint& dense) {
  const auto expect_shape = [&](const std::string& name, const at::Tensor& tensor) {
    const auto& expected = dense.entry(name).shape;
    if (tensor.sizes() != at::IntArrayRef(expected))
      fail(ExitCode::data, "{}: tensor '{}' is {}, expected {} as in {}", file.string(),
           printable(name), shape_text(tensor.sizes().vec()), shape_text(expected),
           dense.file_of(name).string());
  };
  for (const auto& [name, linear] : record.linears) expect_shape(name, linear.weight);
  for (const auto& [name, tensor] : record.changed) expect_shape(name, tensor);
  for (const auto& [name, hash] : record.source_hashes)
    if (!is_source(dense.read(name, dense.entry(name).shape), hash))
      fail(ExitCode::data, "{}: tensor '{}' of {} is not the one that was compressed (hash {})",
           file.string(), printable(name), dense.directory().string(), printable(hash));
}

void check_mask(const fs::path& file, const std::string& name, const CompressedLinear& linear) {
  if (!linear.mask.defined()) return;
  const std::vector<int64_t> expected{linear.weight.size(0), (linear.weight.size(1) + 7) / 8};
  if (linear.mask.scalar_type() != at::kByte || linear.mask.sizes() != at::IntArrayRef(expected))
    fail(ExitCode::data, "{}: mask of '{}' is {} {}, expected U8 {}", file.string(),
         printable(name), dtype_name(linear.mask.scalar_type()),
         shape_text(linear.mask.sizes().vec()), shape_text(expected));
}

/// All tensors that a job's layers give, by their path in the gathered file, as hashes.
using TensorHashes = std::map<std::string, std::string>;

void add_hashes(const LayerRecord& record, TensorHashes& hashes) {
  for (const auto& [name, tensor] : record.changed) hashes[name] = tensor_hash(tensor);
  for (const auto& [name, linear] : record.linears) {
    for (const auto& [field, tensor] :
         {std::pair("codes", linear.codes), std::pair("scale", linear.scale),
          std::pair("zero", linear.zero), std::pair("g_idx", linear.g_idx),
          std::pair("mask", linear.mask)})
      if (tensor.defined()) hashes[name + "/" + field] = tensor_hash(tensor);
    if (!linear.codes.defined()) hashes[name + "/weight"] = tensor_hash(linear.weight);
  }
}

struct JobLayers {
  std::vector<LayerHeader> headers;  // by layer; valid where `good`
  std::vector<bool> good;
  TensorHashes tensors;
};

JobLayers check_layers(const JobDirectory& job, const Checkpoint* dense, Verdict& verdict) {
  JobLayers layers;
  for (const auto& file : files_of(job.layers(), verdict)) {
    const int64_t number = number_of(file);
    if (number < 0) {
      verdict.problems.push_back(fmt::format("{}: not a layer's file name", file.string()));
      continue;
    }
    const auto index = static_cast<size_t>(number);
    if (index > layers.headers.size() + 100'000) {
      verdict.problems.push_back(fmt::format("{}: layer number out of range", file.string()));
      continue;
    }
    if (layers.good.size() <= index) {
      layers.good.resize(index + 1, false);
      layers.headers.resize(index + 1);
    }
    layers.good[index] = attempt(verdict, [&] {
      const LayerRecord record = read_layer(file);
      layers.headers[index] = read_layer_header(file);
      if (record.layer != number)
        fail(ExitCode::data, "{}: holds layer {}, expected {}", file.string(), record.layer,
             number);
      for (const auto& [name, linear] : record.linears) check_mask(file, name, linear);
      if (dense != nullptr) check_against_dense(file, record, *dense);
      add_hashes(record, layers.tensors);
    });
  }
  return layers;
}

/// One job id, no gaps; every layer follows the one before it, or every layer stands alone.
void check_chain(const JobDirectory& job, const JobLayers& layers, Verdict& verdict) {
  const size_t count = layers.good.size();
  const auto first = std::find(layers.good.begin(), layers.good.end(), true);
  if (first == layers.good.end()) return;
  const std::string& job_id =
      layers.headers[static_cast<size_t>(first - layers.good.begin())].job_id;
  bool sequential = true, alone = true;
  std::string last_break;
  for (size_t i = 0; i < count; ++i) {
    const std::string file = job.layer(static_cast<int64_t>(i)).string();
    if (!layers.good[i]) {
      if (!fs::exists(file))
        verdict.problems.push_back(fmt::format("{}: missing: layer {} of {}", file, i, count));
      continue;
    }
    const LayerHeader& header = layers.headers[i];
    if (header.job_id != job_id)
      verdict.problems.push_back(
          fmt::format("{}: of job {}, expected {}", file, header.job_id, job_id));
    const auto follows = [&](const std::string& previous) {
      return header.chain == chain_hash(header.job_id, previous, header.content_hash);
    };
    alone &= follows("");
    if (i > 0 && !layers.good[i - 1]) continue;
    if (follows(i > 0 ? layers.headers[i - 1].chain : "")) continue;
    sequential = false;
    last_break = file;
  }
  if (!sequential && !alone)
    verdict.problems.push_back(
        fmt::format("{}: its chain is not that of the layer before: it was computed on another one",
                    last_break));
}

void check_gathered(const JobDirectory& job, const JobLayers& layers, const Checkpoint* dense,
                    Verdict& verdict) {
  const fs::path path = job.gathered();
  std::error_code error;
  if (!fs::exists(path, error)) return;
  const bool whole = attempt(verdict, [&] {
    const hdf5::Group file = hdf5::File::open(path);
    std::vector<std::string> hashes;
    for (const auto& header : layers.headers) hashes.push_back(header.content_hash);
    expect_hash(path, "content hash", file.text("content_hash"), job_content_hash(hashes));
    TensorHashes missing = layers.tensors;
    const auto check = [&](const hdf5::Group& group, const std::string& name,
                           const std::string& dataset) {
      const auto expected = missing.find(name);
      if (expected != missing.end()) {
        expect_hash(path, fmt::format("hash of '{}'", printable(name)),
                    tensor_hash(group.read(dataset)), expected->second);
        missing.erase(expected);
      } else if (dense != nullptr) {
        expect_hash(path, fmt::format("hash of '{}'", printable(name)),
                    tensor_hash(group.read(dataset)),
                    tensor_hash(dense->read(name, dense->entry(name).shape)));
      }
    };
    for (const auto& name : file.groups())
      for (const auto& field : file.group(name).datasets())
        check(file.group(name), name + "/" + field, field);
    for (const auto& name : file.datasets()) check(file, name, name);
    if (!missing.empty())
      fail(ExitCode::data, "{}: lacks '{}' and {} more of its layers' tensors", path.string(),
           printable(missing.begin()->first), missing.size() - 1);
  });
  if (whole) verdict.lines.push_back(fmt::format("{}: equals its layers", path.string()));
}

void check_exports(const JobDirectory& job, Verdict& verdict) {
  std::error_code error;
  for (const auto& entry : fs::directory_iterator(job.path() / "export", error)) {
    if (entry.path().filename().string().starts_with(".") || !entry.is_directory(error)) continue;
    attempt(verdict, [&] {
      const Checkpoint exported(entry.path());
      verdict.lines.push_back(
          fmt::format("{}: {} tensors", entry.path().string(), exported.names().size()));
    });
  }
}

void check_job(const JobDirectory& job, const Checkpoint* dense, Verdict& verdict) {
  const JobLayers layers = check_layers(job, dense, verdict);
  check_chain(job, layers, verdict);
  verdict.lines.push_back(fmt::format("{}: {} of {} layers whole", job.layers().string(),
                                      std::count(layers.good.begin(), layers.good.end(), true),
                                      layers.good.size()));
  if (std::find(layers.good.begin(), layers.good.end(), false) == layers.good.end())
    check_gathered(job, layers, dense, verdict);
  check_exports(job, verdict);
}

/// What the queue says is done must be there; a queue that is not yet written is none.
void check_queue(const RunDirectory& run, Verdict& verdict) {
  std::error_code error;
  if (!fs::exists(run.queue(), error)) return;
  attempt(verdict, [&] {
    std::map<std::string, int> counts;
    for (const auto& job : read_queue(run.queue())) {
      ++counts[to_text(job.state)];
      if (job.state != JobState::done) continue;
      const JobDirectory folder = run.job(job.name);
      for (const auto& file : {folder.gathered(), folder.report()})
        if (!fs::exists(file))
          verdict.problems.push_back(fmt::format("{}: missing, but {} says that {} is done",
                                                 file.string(), run.queue().string(),
                                                 printable(job.name)));
      const fs::path first = folder.layer(0);
      if (fs::exists(first) && read_layer_header(first).job_id != job.job_id)
        verdict.problems.push_back(
            fmt::format("{}: of another job than {} says", first.string(), run.queue().string()));
    }
    std::vector<std::string> parts;
    for (const auto& [state, count] : counts) parts.push_back(fmt::format("{} {}", count, state));
    verdict.lines.push_back(
        fmt::format("{}: jobs: {}", run.queue().string(), fmt::join(parts, ", ")));
  });
}

}  // namespace

Verdict verify_run(const RunDirectory& run, const DenseModels& dense_of) {
  run.expect_run();
  Verdict verdict;
  for (const auto& file : files_of(run.path() / "calibration", verdict))
    attempt(verdict, [&] {
      const CalibrationSet set = read_calibration(file);
      verdict.lines.push_back(fmt::format("{}: {} sequences of {} tokens, content hash {}",
                                          file.string(), set.tokens.size(0), set.tokens.size(1),
                                          set.content_hash()));
    });
  for (const auto& name : run.jobs()) check_job(run.job(name), dense_of(name), verdict);
  check_queue(run, verdict);
  return verdict;
}

std::string to_text(const Verdict& verdict) {
  std::string text;
  for (const auto& line : verdict.lines) text += line + "\n";
  for (const auto& problem : verdict.problems) text += "problem: " + problem + "\n";
  text += verdict.whole() ? "whole\n" : fmt::format("{} problems\n", verdict.problems.size());
  return text;
}

}  // namespace selfcal
