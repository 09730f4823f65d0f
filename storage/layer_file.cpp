#include "storage/layer_file.hpp"

#include <ATen/ATen.h>

#include <array>
#include <cstring>

#include "base/error.hpp"
#include "base/hash.hpp"
#include "storage/dtype.hpp"
#include "storage/hdf5.hpp"
#include "storage/packing.hpp"
#include "storage/tensor_hash.hpp"

namespace selfcal {
namespace {

constexpr int64_t schema = 1;

/// The tensors of a linear layer and their names in its group. A quantised layer's weight is
/// rebuilt from its codes.
template <class Linear>
auto stored_tensors(Linear& linear) {
  using Field = decltype(&linear.weight);
  return std::array<std::pair<const char*, Field>, 6>{{{"codes", &linear.codes},
                                                       {"g_idx", &linear.g_idx},
                                                       {"mask", &linear.mask},
                                                       {"scale", &linear.scale},
                                                       {"weight", &linear.weight},
                                                       {"zero", &linear.zero}}};
}

bool is_stored(const CompressedLinear& linear, const char* name, const at::Tensor& tensor) {
  const bool rebuilt = linear.codes.defined() && std::strcmp(name, "weight") == 0;
  return tensor.defined() && !rebuilt;
}

bool same_bits(const at::Tensor& a, const at::Tensor& b) {
  const at::Tensor x = a.contiguous(), y = b.contiguous();
  return a.scalar_type() == b.scalar_type() && a.sizes() == b.sizes() &&
         (x.nbytes() == 0 || std::memcmp(x.const_data_ptr(), y.const_data_ptr(), x.nbytes()) == 0);
}

/// For a tensor that is not read: its dtype and shape.
at::Tensor stand_in(at::ScalarType dtype, at::IntArrayRef shape) {
  return at::zeros({}, dtype).expand(shape);
}

using ReadTensor = at::Tensor (*)(const hdf5::Group& group, const std::string& name);
at::Tensor whole(const hdf5::Group& group, const std::string& name) { return group.read(name); }
at::Tensor outline(const hdf5::Group& group, const std::string& name) {
  const hdf5::DatasetInfo info = group.info(name);
  return stand_in(info.dtype, info.shape);
}

void check_before_writing(const std::string& name, const CompressedLinear& linear) {
  if (!linear.weight.defined() || linear.weight.dim() != 2)
    fail(ExitCode::internal, "{}: a linear layer needs its weight", name);
  if (linear.codes.defined() &&
      !same_bits(linear.weight,
                 dequantise(linear, linear.weight.size(1), linear.weight.scalar_type(), name)))
    fail(ExitCode::internal, "{}: the weight is not what its codes, scales and zeros give", name);
}

uint64_t bytes_of(const LayerRecord& record) {
  uint64_t bytes = 0;
  for (const auto& [name, linear] : record.linears)
    for (const auto& [field, tensor] : stored_tensors(linear))
      if (is_stored(linear, field, *tensor)) bytes += tensor->nbytes();
  for (const auto& [name, tensor] : record.changed) bytes += tensor.nbytes();
  return bytes;
}

void write_linear(const hdf5::Group& group, const CompressedLinear& linear) {
  for (const auto& [field, tensor] : stored_tensors(linear))
    if (is_stored(linear, field, *tensor)) group.write(field, *tensor);
  group.set("dtype", std::string(dtype_name(linear.weight.scalar_type())));
  group.set("rows", linear.weight.size(0));
  group.set("columns", linear.weight.size(1));
  group.set("bits", int64_t{linear.bits});
  group.set("group_size", linear.group_size);
  group.set("symmetric", int64_t{linear.symmetric});
  group.set("relative_error", linear.relative_error);
  group.set("nearest_error", linear.nearest_error);
  group.set("loss", linear.loss);
  group.set("damping", linear.damping);
  group.set("damping_retries", int64_t{linear.damping_retries});
  group.set("dead_columns", linear.dead_columns);
  group.set("sparsity", linear.sparsity);
}

CompressedLinear read_linear(const hdf5::Group& group, ReadTensor read) {
  CompressedLinear linear;
  for (const auto& [field, tensor] : stored_tensors(linear))
    if (group.has(field)) *tensor = read(group, field);
  linear.bits = static_cast<int>(group.integer("bits"));
  linear.group_size = group.integer("group_size");
  linear.symmetric = group.integer("symmetric") != 0;
  linear.relative_error = group.real("relative_error");
  linear.nearest_error = group.real("nearest_error");
  linear.loss = group.real("loss");
  linear.damping = group.real("damping");
  linear.damping_retries = static_cast<int>(group.integer("damping_retries"));
  linear.dead_columns = group.integer("dead_columns");
  if (group.has_attribute("sparsity")) linear.sparsity = group.real("sparsity");
  const auto dtype = dtype_of_name(group.text("dtype"));
  if (!dtype)
    fail(ExitCode::data, "{}: '{}', expected one of {}", group.place("@dtype"),
         printable(group.text("dtype")), known_dtypes());
  const std::vector<int64_t> shape{group.integer("rows"), group.integer("columns")};
  if (shape[0] < 0 || shape[1] < 0)
    fail(ExitCode::data, "{}: shape {}", group.place(), shape_text(shape));
  if (linear.codes.defined()) linear.weight = stand_in(*dtype, shape);
  if (!linear.weight.defined() || linear.weight.scalar_type() != *dtype ||
      linear.weight.sizes() != at::IntArrayRef(shape))
    fail(ExitCode::data, "{}: no weight of {} {}", group.place(), dtype_name(*dtype),
         shape_text(shape));
  return linear;
}

LayerHeader read_header(const hdf5::Group& file, const fs::path& path) {
  if (!file.has_attribute("kind") || file.text("kind") != "layer")
    fail(ExitCode::data, "{}: not a layer file", path.string());
  LayerHeader header;
  header.schema = file.integer("schema");
  if (header.schema != schema)
    fail(ExitCode::data, "{}: schema {}, expected {}", path.string(), header.schema, schema);
  header.layer = file.integer("layer");
  header.job_id = file.text("job_id");
  header.content_hash = file.text("content_hash");
  header.chain = file.text("chain");
  return header;
}

/// Everything in the file; weights that have codes are not rebuilt yet.
LayerRecord read_record(const hdf5::Group& file, const LayerHeader& header, ReadTensor read) {
  LayerRecord record;
  record.layer = header.layer;
  record.job_id = header.job_id;
  for (const auto& name : file.groups()) {
    if (name == "changed" || name == "source") continue;
    record.linears.emplace(name, read_linear(file.group(name), read));
  }
  const hdf5::Group changed = file.group("changed"), source = file.group("source");
  for (const auto& name : changed.datasets()) record.changed.emplace(name, read(changed, name));
  for (const auto& name : source.attributes())
    record.source_hashes.emplace(name, source.text(name));
  return record;
}

/// The same, checked against the content hash.
LayerRecord read_checked(const hdf5::Group& file, const LayerHeader& header, const fs::path& path) {
  LayerRecord record = read_record(file, header, whole);
  expect_hash(path, "content hash", record.content_hash(), header.content_hash);
  return record;
}

}  // namespace

std::string LayerRecord::content_hash() const {
  Hasher hasher;
  for (const auto& [name, tensor] : changed) add_tensor(hasher, "changed/" + name, tensor);
  for (const auto& [name, linear] : linears) {
    hasher.text(name).text(dtype_name(linear.weight.scalar_type()));
    hasher.number(linear.weight.size(0)).number(linear.weight.size(1));
    hasher.number(linear.bits).number(linear.group_size).number(linear.symmetric);
    for (const auto& [field, tensor] : stored_tensors(linear))
      if (is_stored(linear, field, *tensor)) add_tensor(hasher, name + "/" + field, *tensor);
  }
  return hasher.digest();
}

void write_layer(const fs::path& path, LayerRecord record, const std::string& chain) {
  for (auto& [name, linear] : record.linears) {
    check_before_writing(name, linear);
    if (linear.codes.defined())
      linear.weight = stand_in(linear.weight.scalar_type(), linear.weight.sizes());
  }
  hdf5::File::write(path, bytes_of(record), [&](const hdf5::Group& file) {
    file.set("kind", "layer");
    file.set("schema", schema);
    file.set("layer", record.layer);
    file.set("job_id", record.job_id);
    file.set("content_hash", record.content_hash());
    file.set("chain", chain);
    for (const auto& [name, linear] : record.linears) write_linear(file.create_group(name), linear);
    const hdf5::Group changed = file.create_group("changed");
    for (const auto& [name, tensor] : record.changed) changed.write(name, tensor);
    const hdf5::Group source = file.create_group("source");
    for (const auto& [name, hash] : record.source_hashes) source.set(name, hash);
  });
}

LayerHeader read_layer_header(const fs::path& path) {
  return read_header(hdf5::File::open(path), path);
}

LayerHeader check_layer(const fs::path& path) {
  const hdf5::Group file = hdf5::File::open(path);
  const LayerHeader header = read_header(file, path);
  read_checked(file, header, path);
  return header;
}

LayerRecord read_layer(const fs::path& path, bool rebuild_weights) {
  const hdf5::Group file = hdf5::File::open(path);
  LayerRecord record = read_checked(file, read_header(file, path), path);
  for (auto& [name, linear] : record.linears)
    if (rebuild_weights && linear.codes.defined())
      linear.weight =
          dequantise(linear, linear.weight.size(1), linear.weight.scalar_type(), file.place(name));
  return record;
}

LayerRecord outline_layer(const fs::path& path) {
  const hdf5::Group file = hdf5::File::open(path);
  return read_record(file, read_header(file, path), outline);
}

}  // namespace selfcal
