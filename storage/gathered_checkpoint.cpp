#include "storage/gathered_checkpoint.hpp"

#include <ATen/ATen.h>

#include <algorithm>
#include <optional>

#include "base/error.hpp"
#include "base/hash.hpp"
#include "comm/agreement.hpp"
#include "storage/copied_rows.hpp"
#include "storage/disk_space.hpp"
#include "storage/dtype.hpp"
#include "storage/hdf5.hpp"
#include "storage/layer_scan.hpp"

namespace selfcal {
namespace {

constexpr int64_t schema = 1;
constexpr int64_t from_dense = -1;

struct PlannedGroup {
  std::string name;
  std::map<std::string, hdf5::Value> attributes;
};

/// A dataset of the gathered file and where its rows come from.
struct PlannedDataset {
  std::string group;  // empty: directly under the root
  std::string name;
  at::ScalarType dtype = at::kFloat;
  std::vector<int64_t> shape;
  int64_t layer = from_dense;

  int64_t rows() const { return shape.empty() ? 1 : shape[0]; }
  int64_t bytes() const {
    int64_t product = static_cast<int64_t>(c10::elementSize(dtype));
    for (const int64_t size : shape) product *= size;
    return product;
  }
};

struct Plan {
  std::vector<PlannedGroup> groups;
  std::vector<PlannedDataset> datasets;
  std::string content_hash;
};

/// What a layer changes must be of the dense model, with the same shape.
void expect_shape(const Checkpoint& dense, const fs::path& file, const std::string& name,
                  const std::vector<int64_t>& shape) {
  if (!dense.contains(name))
    fail(ExitCode::data, "{}: tensor '{}' is not in the dense model {}", file.string(),
         printable(name), dense.directory().string());
  if (dense.entry(name).shape != shape)
    fail(ExitCode::data, "{}: tensor '{}' is {}, expected {} as in {}", file.string(),
         printable(name), shape_text(shape), shape_text(dense.entry(name).shape),
         dense.file_of(name).string());
}

void plan_layer(const JobDirectory& job, int64_t layer, const Checkpoint& dense, Plan& plan) {
  const fs::path path = job.layer(layer);
  const hdf5::Group file = hdf5::File::open(path);
  for (const auto& name : file.groups()) {
    const hdf5::Group group = file.group(name);
    const bool is_changed = name == "changed";
    if (name == "source") continue;
    if (!is_changed) {
      expect_shape(dense, path, name, {group.integer("rows"), group.integer("columns")});
      plan.groups.push_back({name, group.values()});
    }
    for (const auto& dataset : group.datasets()) {
      const hdf5::DatasetInfo info = group.info(dataset);
      if (is_changed) expect_shape(dense, path, dataset, info.shape);
      plan.datasets.push_back({name, dataset, info.dtype, info.shape, layer});
    }
  }
}

/// Layers in their order, then all that no layer holds, by name.
Plan make_plan(const Checkpoint& dense, const JobDirectory& job, const GatherSettings& settings) {
  Plan plan;
  std::vector<std::string> hashes;
  for (int64_t layer = 0; layer < settings.layers; ++layer) {
    plan_layer(job, layer, dense, plan);
    hashes.push_back(read_layer_header(job.layer(layer)).content_hash);
  }
  plan.content_hash = job_content_hash(hashes);
  std::vector<std::string> covered;
  for (const auto& group : plan.groups) covered.push_back(group.name);
  for (const auto& dataset : plan.datasets)
    if (dataset.group == "changed") covered.push_back(dataset.name);
  std::sort(covered.begin(), covered.end());
  if (const auto twice = std::adjacent_find(covered.begin(), covered.end()); twice != covered.end())
    fail(ExitCode::data, "{}: tensor '{}' is in two layers", job.layers().string(),
         printable(*twice));
  for (const auto& name : dense.names()) {
    if (std::binary_search(covered.begin(), covered.end(), name)) continue;
    const TensorEntry& entry = dense.entry(name);
    plan.datasets.push_back({"", name, entry.dtype, entry.shape, from_dense});
  }
  return plan;
}

/// The group that holds a dataset; a layer's "changed" tensors stand under the root.
hdf5::Group parent_of(const hdf5::Group& file, const PlannedDataset& dataset) {
  return file.group(dataset.group.empty() || dataset.group == "changed" ? "/" : dataset.group);
}

/// Collective: everything but the rows.
void create_structure(const hdf5::Group& file, const Plan& plan, const Checkpoint& dense,
                      const GatherSettings& settings) {
  file.set("kind", "model");
  file.set("schema", schema);
  file.set("job_id", settings.job_id);
  file.set("layers", settings.layers);
  file.set("content_hash", plan.content_hash);
  file.set("model_identity", dense.identity());
  file.set("model_config", dense.config_text());
  for (const auto& [name, text] : settings.provenance) file.set(name, text);
  for (const auto& group : plan.groups) {
    const hdf5::Group made = file.create_group(group.name);
    for (const auto& [name, value] : group.attributes) made.set(name, value);
  }
  for (const auto& dataset : plan.datasets) {
    parent_of(file, dataset).create(dataset.name, dataset.dtype, dataset.shape, {settings.deflate});
  }
}

int64_t expected_bytes(const Plan& plan) {
  int64_t bytes = 1 << 20;
  for (const auto& dataset : plan.datasets) bytes += dataset.bytes() + 4096;
  return bytes;
}

/// Reads rows from where they are now.
class Source {
 public:
  Source(const Checkpoint& dense, const JobDirectory& job) : dense_(dense), job_(job) {}

  at::Tensor rows(const PlannedDataset& dataset, int64_t first, int64_t count) {
    if (count == 0) return at::empty({0}, dataset.dtype);
    if (dataset.layer == from_dense)
      return dataset.shape.empty() ? dense_.read(dataset.name, {})
                                   : dense_.read_rows(dataset.name, first, count);
    if (open_layer_ != dataset.layer) {
      layer_ = hdf5::File::open(job_.layer(dataset.layer));
      open_layer_ = dataset.layer;
    }
    const hdf5::Group group = layer_->group(dataset.group);
    return dataset.shape.empty() ? group.read(dataset.name)
                                 : group.read_rows(dataset.name, first, count);
  }

 private:
  const Checkpoint& dense_;
  const JobDirectory& job_;
  std::optional<hdf5::Group> layer_;
  int64_t open_layer_ = from_dense;
};

/// Copies this rank's rows of every dataset. All ranks take as many steps, because steps on
/// datasets with filters are collective.
void copy_rows(const hdf5::Group& file, const Plan& plan, const Communicator& ranks,
               Source source) {
  for (const auto& dataset : plan.datasets) {
    const hdf5::Group parent = parent_of(file, dataset);
    const int64_t step = copied_rows(dataset.rows(), dataset.bytes()) * ranks.size();
    for (int64_t first = 0; first < dataset.rows(); first += step) {
      const int64_t here = std::min(step, dataset.rows() - first);
      const int64_t begin = first + here * ranks.rank() / ranks.size();
      const int64_t end = first + here * (ranks.rank() + 1) / ranks.size();
      parent.write_rows(dataset.name, begin, source.rows(dataset, begin, end - begin));
    }
  }
}

void rename_synced(const fs::path& from, const fs::path& to) {
  std::error_code error;
  fs::rename(from, to, error);
  if (error) fail(ExitCode::io, "{}: cannot rename: {}", to.string(), error.message());
  sync_path(to.parent_path());
}

void check_layers(const Communicator& ranks, const JobDirectory& job,
                  const GatherSettings& settings) {
  for (int64_t layer = ranks.rank(); layer < settings.layers; layer += ranks.size()) {
    const CommittedLayer found = examine_layer(job, layer, settings.job_id);
    if (found.state == LayerState::missing)
      fail(ExitCode::data, "{}: layer {} is not committed", job.layer(layer).string(), layer);
    if (found.state != LayerState::good) fail(ExitCode::data, "{}", found.problem);
  }
}

}  // namespace

std::string job_content_hash(const std::vector<std::string>& layer_content_hashes) {
  Hasher hasher;
  for (const auto& hash : layer_content_hashes) hasher.text(hash);
  return hasher.digest();
}

std::string gather_checkpoint(const Communicator& ranks, const Checkpoint& dense,
                              const JobDirectory& job, const GatherSettings& settings) {
  Plan plan;
  const fs::path temporary = job.path() / ".model.h5.tmp";
  agree(ranks, [&] { check_layers(ranks, job, settings); });
  agree(ranks, [&] { plan = make_plan(dense, job, settings); });
  agree(ranks, [&] {
    if (ranks.rank() == 0) expect_room(job.path(), expected_bytes(plan));
  });
  try {
    hdf5::File::write_in_place(temporary, ranks.mpi(), [&](const hdf5::Group& file) {
      create_structure(file, plan, dense, settings);
      if (ranks.rank() == 0) reserve(temporary, expected_bytes(plan));
      copy_rows(file, plan, ranks, Source(dense, job));
    });
  } catch (...) {
    std::error_code ignored;
    fs::remove(temporary, ignored);
    throw;
  }
  agree(ranks, [&] {
    if (ranks.rank() != 0) return;
    sync_path(temporary);
    rename_synced(temporary, job.gathered());
  });
  return plan.content_hash;
}

}  // namespace selfcal
