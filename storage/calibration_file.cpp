#include "storage/calibration_file.hpp"

#include <ATen/ATen.h>

#include "base/error.hpp"
#include "base/hash.hpp"
#include "storage/dtype.hpp"
#include "storage/hdf5.hpp"
#include "storage/tensor_hash.hpp"

namespace selfcal {
namespace {

constexpr int64_t schema = 1;

/// Of everything in the file, where content_hash() is of what the model is calibrated on.
std::string whole_hash(const CalibrationSet& set) {
  Hasher hasher;
  add_tensor(hasher, "tokens", set.tokens);
  add_tensor(hasher, "lengths", set.lengths);
  add_tensor(hasher, "log_prob", set.log_prob);
  add_tensor(hasher, "temperature", set.temperature);
  return hasher.text(set.source).text(set.settings).number(set.seed).number(set.set).digest();
}

void expect(const hdf5::Group& file, const std::string& name, const at::Tensor& tensor,
            at::ScalarType dtype, const std::vector<int64_t>& shape) {
  if (tensor.scalar_type() != dtype || tensor.sizes() != at::IntArrayRef(shape))
    fail(ExitCode::data, "{}: is {} {}, expected {} {}", file.place(name),
         dtype_name(tensor.scalar_type()), shape_text(tensor.sizes().vec()), dtype_name(dtype),
         shape_text(shape));
}

}  // namespace

std::string CalibrationSet::content_hash() const {
  Hasher hasher;
  add_tensor(hasher, "tokens", tokens);
  add_tensor(hasher, "lengths", lengths);
  return hasher.digest();
}

void write_calibration(const fs::path& path, const CalibrationSet& set) {
  const uint64_t bytes = set.tokens.nbytes() + set.log_prob.nbytes() + set.temperature.nbytes();
  hdf5::File::write(path, bytes, [&](const hdf5::Group& file) {
    file.set("kind", "calibration");
    file.set("schema", schema);
    file.set("content_hash", set.content_hash());
    file.set("whole_hash", whole_hash(set));
    file.set("source", set.source);
    file.set("settings", set.settings);
    file.set("seed", set.seed);
    file.set("set", set.set);
    file.write("tokens", set.tokens);
    file.write("lengths", set.lengths);
    file.write("log_prob", set.log_prob);
    file.write("temperature", set.temperature);
  });
}

CalibrationSet read_calibration(const fs::path& path) {
  const hdf5::Group file = hdf5::File::open(path);
  if (!file.has_attribute("kind") || file.text("kind") != "calibration")
    fail(ExitCode::data, "{}: not a calibration file", path.string());
  if (file.integer("schema") != schema)
    fail(ExitCode::data, "{}: schema {}, expected {}", path.string(), file.integer("schema"),
         schema);
  CalibrationSet set;
  set.tokens = file.read("tokens");
  set.lengths = file.read("lengths");
  set.log_prob = file.read("log_prob");
  set.temperature = file.read("temperature");
  set.source = file.text("source");
  set.settings = file.text("settings");
  set.seed = file.integer("seed");
  set.set = file.integer("set");
  if (set.tokens.dim() != 2)
    fail(ExitCode::data, "{}: is {}, expected [sequences, length]", file.place("tokens"),
         shape_text(set.tokens.sizes().vec()));
  const std::vector<int64_t> shape = set.tokens.sizes().vec();
  expect(file, "tokens", set.tokens, at::kInt, shape);
  expect(file, "lengths", set.lengths, at::kInt, {shape[0]});
  expect(file, "log_prob", set.log_prob, at::kFloat, shape);
  expect(file, "temperature", set.temperature, at::kFloat, shape);
  expect_hash(path, "content hash", set.content_hash(), file.text("content_hash"));
  expect_hash(path, "hash of the whole", whole_hash(set), file.text("whole_hash"));
  return set;
}

}  // namespace selfcal
