#include "storage/inspect.hpp"

#include <ATen/ATen.h>
#include <fmt/format.h>

#include <cmath>
#include <map>

#include "base/error.hpp"
#include "storage/calibration_file.hpp"
#include "storage/checkpoint.hpp"
#include "storage/dtype.hpp"
#include "storage/hdf5.hpp"
#include "storage/tensor_file.hpp"

namespace selfcal {
namespace {

std::string size_text(uint64_t bytes) {
  if (bytes < 10'000) return fmt::format("{} bytes", bytes);
  if (bytes < 10'000'000) return fmt::format("{:.1f} kB", static_cast<double>(bytes) * 1e-3);
  return bytes < 10'000'000'000 ? fmt::format("{:.1f} MB", static_cast<double>(bytes) * 1e-6)
                                : fmt::format("{:.1f} GB", static_cast<double>(bytes) * 1e-9);
}

std::string tensor_line(const std::string& name, at::ScalarType dtype,
                        const std::vector<int64_t>& shape) {
  return fmt::format("  {:<56} {:<4} {}\n", printable(name), dtype_name(dtype), shape_text(shape));
}

std::string value_text(const hdf5::Value& value) {
  return std::visit([](const auto& plain) { return fmt::format("{}", plain); }, value);
}

/// Long texts (a config) are cut to their first line.
std::string attribute_lines(const hdf5::Group& group) {
  std::string text;
  for (const auto& [name, value] : group.values()) {
    std::string shown = value_text(value);
    const size_t lines = static_cast<size_t>(std::count(shown.begin(), shown.end(), '\n'));
    if (lines > 1)
      shown = fmt::format("{} ... ({} lines)", shown.substr(0, shown.find('\n')), lines);
    text += fmt::format("{}: {}\n", printable(name), printable(shown));
  }
  return text;
}

/// "4 bits, group 64, symmetric, scale BF16; error 0.0123 (nearest 0.0234), damping 0.01"
std::string linear_line(const std::string& name, const hdf5::Group& group) {
  uint64_t bytes = 0;
  for (const auto& dataset : group.datasets()) bytes += group.info(dataset).bytes;
  std::string text = fmt::format("  {:<56} [{}, {}]", printable(name), group.integer("rows"),
                                 group.integer("columns"));
  if (group.has("codes"))
    text += fmt::format(
        " {} bits, group {}, {}, scale {}{}", group.integer("bits"), group.integer("group_size"),
        group.integer("symmetric") != 0 ? "symmetric" : "asymmetric",
        dtype_name(group.info("scale").dtype), group.has("g_idx") ? ", column index" : "");
  if (group.has("mask")) text += " pruned";
  if (group.has("mask") && group.has_attribute("sparsity"))
    text += fmt::format(" ({:.4g} zeros)", group.real("sparsity"));
  text +=
      fmt::format(", {}; error {:.4g} (control {:.4g}), damping {:.4g}", size_text(bytes),
                  group.real("relative_error"), group.real("nearest_error"), group.real("damping"));
  if (group.integer("damping_retries") > 0)
    text += fmt::format(" after {} retries", group.integer("damping_retries"));
  if (group.integer("dead_columns") > 0)
    text += fmt::format(", {} dead columns", group.integer("dead_columns"));
  return text + "\n";
}

std::string describe_layers(const hdf5::Group& file) {
  std::string text = attribute_lines(file);
  for (const auto& name : file.groups()) {
    if (name == "source") continue;
    const hdf5::Group group = file.group(name);
    if (name != "changed") {
      text += linear_line(name, group);
      continue;
    }
    for (const auto& dataset : group.datasets())
      text += tensor_line(dataset, group.info(dataset).dtype, group.info(dataset).shape);
  }
  for (const auto& name : file.datasets())
    text += tensor_line(name, file.info(name).dtype, file.info(name).shape);
  return text;
}

std::string describe_calibration(const fs::path& path) {
  const CalibrationSet set = read_calibration(path);
  const at::Tensor sampled = set.temperature.gt(0);
  const int64_t drawn = sampled.sum().item<int64_t>();
  std::string text =
      fmt::format("calibration set: {} sequences of {} tokens from {}, seed {}, set {}\n",
                  set.tokens.size(0), set.tokens.size(1), printable(set.source), set.seed, set.set);
  text +=
      fmt::format("content hash: {}\nsettings: {}\n", set.content_hash(), printable(set.settings));
  if (drawn > 0) {
    const at::Tensor temperatures = set.temperature.masked_select(sampled);
    text += fmt::format(
        "{} tokens drawn at temperatures {:.3g} to {:.3g}, mean log-probability {:.4f}\n", drawn,
        temperatures.min().item<double>(), temperatures.max().item<double>(),
        set.log_prob.masked_select(sampled).to(at::kDouble).mean().item<double>());
  }
  return text;
}

std::string describe_group(const hdf5::Group& group, const std::string& prefix) {
  std::string text;
  for (const auto& name : group.datasets())
    text += tensor_line(prefix + name, group.info(name).dtype, group.info(name).shape);
  for (const auto& name : group.groups())
    text += describe_group(group.group(name), prefix + name + "/");
  return text;
}

std::string describe_hdf5(const fs::path& path) {
  const hdf5::Group file = hdf5::File::open(path);
  const std::string kind = file.has_attribute("kind") ? file.text("kind") : "";
  if (kind == "calibration") return describe_calibration(path);
  if (kind == "layer" || kind == "model") return describe_layers(file);
  return attribute_lines(file) + describe_group(file, "");
}

std::string describe_tensors(const std::map<std::string, TensorEntry>& entries) {
  uint64_t bytes = 0, elements = 0;
  std::string text;
  for (const auto& [name, entry] : entries) {
    bytes += entry.bytes;
    elements += entry.bytes / c10::elementSize(entry.dtype);
    text += tensor_line(name, entry.dtype, entry.shape);
  }
  return fmt::format("{} tensors, {} elements, {}\n", entries.size(), elements, size_text(bytes)) +
         text;
}

std::string describe_directory(const fs::path& path) {
  const Checkpoint checkpoint(path);
  std::map<std::string, TensorEntry> entries;
  for (const auto& name : checkpoint.names()) entries.emplace(name, checkpoint.entry(name));
  return fmt::format("identity: {}\n", checkpoint.identity()) + describe_tensors(entries);
}

std::string describe_safetensors(const fs::path& path) {
  const TensorFile file(path);
  std::string text;
  for (const auto& [name, value] : file.metadata())
    text += fmt::format("{}: {}\n", printable(name), printable(value));
  return text + describe_tensors(file.entries());
}

}  // namespace

std::string inspect(const fs::path& path) {
  std::error_code error;
  if (fs::is_directory(path, error)) return describe_directory(path);
  const InputFile file(path);
  constexpr std::string_view signature = "\x89HDF\r\n\x1a\n";
  std::string begin(std::min<uint64_t>(file.size(), signature.size()), '\0');
  file.read_at(0, std::as_writable_bytes(std::span(begin)));
  if (begin == signature) return describe_hdf5(path);
  if (path.extension() == ".safetensors") return describe_safetensors(path);
  fail(ExitCode::data, "{}: neither an HDF5 file, a safetensors file nor a model directory",
       path.string());
}

}  // namespace selfcal
