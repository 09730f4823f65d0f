#include "storage/gathered_checkpoint.hpp"

#include <ATen/ATen.h>
#include <gtest/gtest.h>
#include <sys/resource.h>

#include <csignal>

#include "comm/agreement.hpp"
#include "example_model.hpp"
#include "shared_folder.hpp"
#include "storage/hdf5.hpp"
#include "storage/tensor_hash.hpp"
#include "temporary_folder.hpp"

namespace selfcal {
namespace {

GatherSettings settings_of(int deflate) {
  GatherSettings settings;
  settings.layers = example_layers;
  settings.job_id = example_layer(0).job_id;
  settings.provenance = {{"tool_version", "0.1"}, {"config", "model: x\n"}};
  settings.deflate = deflate;
  return settings;
}

/// Hash of all groups, attributes and tensors of a file: its logical content.
void add_content(Hasher& hasher, const hdf5::Group& group) {
  for (const auto& [name, value] : group.values()) {
    hasher.text(name);
    std::visit([&](const auto& plain) { hasher.text(fmt::format("{}", plain)); }, value);
  }
  for (const auto& name : group.datasets()) add_tensor(hasher, name, group.read(name));
  for (const auto& name : group.groups()) add_content(hasher.text(name), group.group(name));
}

std::string logical_content(const fs::path& path) {
  Hasher hasher;
  add_content(hasher, hdf5::File::open(path));
  return hasher.digest();
}

/// Every tensor of the gathered file is the one of its layer file or of the dense model.
void expect_whole(const fs::path& path, const Checkpoint& dense, const JobDirectory& job) {
  const hdf5::Group file = hdf5::File::open(path);
  EXPECT_EQ(file.text("tool_version"), "0.1");
  EXPECT_EQ(file.text("model_config"), dense.config_text());
  size_t found = 0;
  for (int64_t layer = 0; layer < example_layers; ++layer) {
    const LayerRecord record = read_layer(job.layer(layer));
    for (const auto& [name, linear] : record.linears) {
      const hdf5::Group group = file.group(name);
      EXPECT_EQ(group.integer("bits"), linear.bits);
      EXPECT_EQ(group.real("relative_error"), linear.relative_error);
      for (const auto& [field, tensor] :
           {std::pair("codes", linear.codes), std::pair("scale", linear.scale),
            std::pair("zero", linear.zero), std::pair("mask", linear.mask)}) {
        EXPECT_EQ(group.has(field), tensor.defined());
        if (!tensor.defined()) continue;
        EXPECT_EQ(tensor_hash(group.read(field)), tensor_hash(tensor)) << name << field;
      }
      EXPECT_EQ(group.has("weight"), !linear.codes.defined());
      if (!linear.codes.defined()) {
        EXPECT_EQ(tensor_hash(group.read("weight")), tensor_hash(linear.weight));
      }
      ++found;
    }
    for (const auto& [name, tensor] : record.changed) {
      EXPECT_EQ(tensor_hash(file.read(name)), tensor_hash(tensor));
      ++found;
    }
  }
  for (const auto& name : file.datasets()) {
    if (name.find("input_layernorm") != std::string::npos) continue;
    EXPECT_EQ(tensor_hash(file.read(name)), tensor_hash(dense.read(name, dense.entry(name).shape)))
        << name;
    ++found;
  }
  EXPECT_EQ(found, dense.names().size()) << "every tensor of the model is there once";
}

TEST(GatheredCheckpoint, SameContentOnAnyNumberOfRanks) {
  const Communicator world = Communicator::world();
  const SharedFolder folder(world);
  const JobDirectory job(folder / "job");
  if (world.rank() == 0) write_example_run(folder / "model", job);
  world.barrier();
  const Checkpoint dense(folder / "model");
  std::string expected;
  for (const int deflate : {0, 1}) {
    for (int size = 1; size <= world.size(); ++size) {
      const Communicator some = world.split(world.rank() < size ? 0 : 1);
      std::string hash;
      if (world.rank() < size) hash = gather_checkpoint(some, dense, job, settings_of(deflate));
      world.barrier();
      if (world.rank() == 0) {
        expect_whole(job.gathered(), dense, job);
        const std::string content = logical_content(job.gathered());
        if (expected.empty()) expected = content;
        EXPECT_EQ(content, expected) << size << " ranks, deflate " << deflate;
        std::vector<std::string> hashes;
        for (int64_t layer = 0; layer < example_layers; ++layer)
          hashes.push_back(example_layer(layer).content_hash());
        EXPECT_EQ(hash, job_content_hash(hashes));
        EXPECT_EQ(hdf5::File::open(job.gathered()).text("content_hash"), hash);
        EXPECT_FALSE(fs::exists(job.path() / ".model.h5.tmp"));
        fs::remove(job.gathered());
      }
      world.barrier();
    }
  }
  if (world.rank() == 0) {  // without MPI
    gather_checkpoint(Communicator::local(), dense, job, settings_of(0));
    EXPECT_EQ(logical_content(job.gathered()), expected);
  }
}

TEST(GatheredCheckpoint, BadLayersAreOneErrorOnEveryRank) {
  const Communicator world = Communicator::world();
  const SharedFolder folder(world);
  const JobDirectory job(folder / "job");
  if (world.rank() == 0) write_example_run(folder / "model", job);
  world.barrier();
  const Checkpoint dense(folder / "model");
  const auto expect_refused = [&](const std::string& part, auto&& damage,
                                  const GatherSettings& settings) {
    if (world.rank() == 0) damage();
    world.barrier();
    expect_error(ExitCode::data, part, [&] { gather_checkpoint(world, dense, job, settings); });
    world.barrier();
    if (world.rank() == 0) {
      EXPECT_FALSE(fs::exists(job.gathered()));
      fs::remove_all(job.path());
      fs::remove_all(folder / "model");
      write_example_run(folder / "model", job);
    }
    world.barrier();
  };
  expect_refused(
      "layer 1 is not committed", [&] { fs::remove(job.layer(1)); }, settings_of(0));
  expect_refused(
      "0001.h5", [&] { fs::resize_file(job.layer(1), 1000); }, settings_of(0));
  GatherSettings other = settings_of(0);
  other.job_id = "other";
  expect_refused(
      "expected other", [] {}, other);
  expect_refused(
      "tensor '" + quantised_name(9) + "' is not in the dense model",
      [&] {
        LayerRecord record = example_layer(1);
        record.linears[quantised_name(9)] = record.linears.at(quantised_name(1));
        write_layer(job.layer(1), record, "");
      },
      settings_of(0));
  expect_refused(
      "is [48, 32], expected [32, 48]",
      [&] {
        LayerRecord record = example_layer(1);
        std::swap(record.linears.at(quantised_name(1)), record.linears.at(pruned_name(1)));
        write_layer(job.layer(1), record, "");
      },
      settings_of(0));
}

/// A limit on the size of files stands in for a full disk.
TEST(GatheredCheckpoint, FullDiskIsOneErrorOnEveryRankAndLeavesNothing) {
  const Communicator world = Communicator::world();
  const SharedFolder folder(world);
  const JobDirectory job(folder / "job");
  if (world.rank() == 0) write_example_run(folder / "model", job);
  world.barrier();
  const Checkpoint dense(folder / "model");
  const auto old_handler = std::signal(SIGXFSZ, SIG_IGN);
  rlimit before{};
  getrlimit(RLIMIT_FSIZE, &before);
  for (const int deflate : {0, 1}) {
    for (const rlim_t limit : {rlim_t{0}, rlim_t{5000}, rlim_t{20000}}) {
      const rlimit small{limit, before.rlim_max};
      setrlimit(RLIMIT_FSIZE, &small);
      expect_error(ExitCode::io, "no room for a file of",
                   [&] { gather_checkpoint(world, dense, job, settings_of(deflate)); });
      setrlimit(RLIMIT_FSIZE, &before);
      EXPECT_FALSE(fs::exists(job.gathered()));
      world.barrier();
      for (const auto& entry : fs::directory_iterator(job.path()))
        EXPECT_NE(entry.path().extension(), ".tmp") << entry.path();
      world.barrier();
    }
  }
  std::signal(SIGXFSZ, old_handler);
  gather_checkpoint(world, dense, job, settings_of(0));
  EXPECT_TRUE(fs::exists(job.gathered()));
  EXPECT_LT(fs::file_size(job.gathered()), 200'000U)
      << "what was reserved and not used is given back";
}

}  // namespace
}  // namespace selfcal
