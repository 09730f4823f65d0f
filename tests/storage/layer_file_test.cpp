#include "storage/layer_file.hpp"

#include <ATen/ATen.h>
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <cstring>

#include "example_layer.hpp"
#include "storage/calibration_file.hpp"
#include "storage/packing.hpp"
#include "storage/tensor_hash.hpp"
#include "temporary_folder.hpp"

namespace selfcal {
namespace {

void expect_same_tensor(const at::Tensor& a, const at::Tensor& b) {
  ASSERT_EQ(a.defined(), b.defined());
  if (!a.defined()) return;
  EXPECT_EQ(tensor_hash(a), tensor_hash(b));
}

TEST(LayerFile, EverythingComesBack) {
  const TemporaryFolder folder;
  const LayerRecord record = example_layer(3);
  write_layer(folder / "0003.h5", record, "chain");
  const LayerRecord back = read_layer(folder / "0003.h5");
  EXPECT_EQ(back.layer, 3);
  EXPECT_EQ(back.job_id, record.job_id);
  EXPECT_EQ(back.source_hashes, record.source_hashes);
  EXPECT_EQ(back.content_hash(), record.content_hash());
  ASSERT_EQ(back.linears.size(), record.linears.size());
  for (const auto& [name, linear] : record.linears) {
    const CompressedLinear& read = back.linears.at(name);
    expect_same_tensor(read.weight, linear.weight);
    expect_same_tensor(read.codes, linear.codes);
    expect_same_tensor(read.scale, linear.scale);
    expect_same_tensor(read.zero, linear.zero);
    expect_same_tensor(read.g_idx, linear.g_idx);
    expect_same_tensor(read.mask, linear.mask);
    EXPECT_EQ(read.bits, linear.bits);
    EXPECT_EQ(read.group_size, linear.group_size);
    EXPECT_EQ(read.symmetric, linear.symmetric);
    EXPECT_EQ(read.relative_error, linear.relative_error);
    EXPECT_EQ(read.nearest_error, linear.nearest_error);
    EXPECT_EQ(read.loss, linear.loss);
    EXPECT_EQ(read.damping, linear.damping);
    EXPECT_EQ(read.damping_retries, linear.damping_retries);
    EXPECT_EQ(read.dead_columns, linear.dead_columns);
  }
  for (const auto& [name, tensor] : record.changed)
    expect_same_tensor(back.changed.at(name), tensor);
  const LayerHeader header = read_layer_header(folder / "0003.h5");
  EXPECT_EQ(header.layer, 3);
  EXPECT_EQ(header.schema, 1);
  EXPECT_EQ(header.job_id, record.job_id);
  EXPECT_EQ(header.chain, "chain");
  EXPECT_EQ(header.content_hash, record.content_hash());
  EXPECT_EQ(check_layer(folder / "0003.h5").content_hash, record.content_hash());
}

TEST(LayerFile, OutlineHasTypesAndShapesOnly) {
  const TemporaryFolder folder;
  const LayerRecord record = example_layer(3);
  write_layer(folder / "0003.h5", record, "chain");
  const LayerRecord outline = outline_layer(folder / "0003.h5");
  EXPECT_EQ(outline.layer, 3);
  EXPECT_EQ(outline.job_id, record.job_id);
  EXPECT_EQ(outline.source_hashes, record.source_hashes);
  const auto expect_like = [](const at::Tensor& found, const at::Tensor& expected) {
    ASSERT_EQ(found.defined(), expected.defined());
    if (!found.defined()) return;
    EXPECT_EQ(found.scalar_type(), expected.scalar_type());
    EXPECT_EQ(found.sizes(), expected.sizes());
    EXPECT_LE(found.storage().nbytes(), sizeof(double));
  };
  ASSERT_EQ(outline.linears.size(), record.linears.size());
  for (const auto& [name, expected] : record.linears) {
    const CompressedLinear& found = outline.linears.at(name);
    EXPECT_EQ(found.bits, expected.bits);
    EXPECT_EQ(found.group_size, expected.group_size);
    EXPECT_EQ(found.symmetric, expected.symmetric);
    expect_like(found.weight, expected.weight);
    expect_like(found.codes, expected.codes);
    expect_like(found.scale, expected.scale);
    expect_like(found.zero, expected.zero);
    expect_like(found.g_idx, expected.g_idx);
    expect_like(found.mask, expected.mask);
  }
  ASSERT_EQ(outline.changed.size(), record.changed.size());
  for (const auto& [name, expected] : record.changed)
    expect_like(outline.changed.at(name), expected);
}

TEST(LayerFile, ContentHashFollowsContentOnly) {
  const LayerRecord record = example_layer(3);
  LayerRecord other = example_layer(3);
  EXPECT_EQ(other.content_hash(), record.content_hash());
  other.linears.begin()->second.relative_error = 9;
  other.source_hashes.clear();
  other.job_id = "another";
  EXPECT_EQ(other.content_hash(), record.content_hash());
  const auto differs = [&](auto&& change) {
    LayerRecord changed = example_layer(3);
    change(changed);
    EXPECT_NE(changed.content_hash(), record.content_hash());
  };
  differs([](auto& r) { r.linears.at(quantised_name(3)).codes[0][0] += 1; });
  differs([](auto& r) { r.linears.at(quantised_name(3)).scale[0][0] += 1; });
  differs([](auto& r) { r.linears.at(quantised_name(3)).zero[0][0] += 1; });
  differs([](auto& r) { r.linears.at(quantised_name(3)).g_idx[0] += 1; });
  differs([](auto& r) { r.linears.at(quantised_name(3)).bits = 5; });
  differs([](auto& r) { r.linears.at(quantised_name(3)).group_size = 5; });
  differs([](auto& r) { r.linears.at(pruned_name(3)).weight[0][0] += 1; });
  differs([](auto& r) { r.linears.at(pruned_name(3)).mask[0][0] += 1; });
  differs([](auto& r) { r.changed.begin()->second[0] += 1; });
  differs([](auto& r) { r.changed.clear(); });
}

TEST(LayerFile, WeightMustBeWhatItsCodesGive) {
  const TemporaryFolder folder;
  LayerRecord record = example_layer(3);
  record.linears.at(quantised_name(3)).weight[0][0] += 1;
  expect_error(ExitCode::internal, quantised_name(3),
               [&] { write_layer(folder / "0003.h5", record, ""); });
  EXPECT_TRUE(fs::is_empty(folder.path()));
}

TEST(LayerFile, NamesThatCannotBeGroupsAreRefused) {
  const TemporaryFolder folder;
  for (const char* name : {"", ".", "a/b"}) {
    LayerRecord record = example_layer(3);
    record.linears.emplace(name, record.linears.at(pruned_name(3)));
    expect_error(ExitCode::data, "cannot name a group",
                 [&] { write_layer(folder / "0003.h5", record, ""); });
  }
}

/// One flipped byte inside a dataset: the error has the hash that was found and the one that was
/// expected.
TEST(LayerFile, DamagedTensorNamesFoundAndExpectedHash) {
  const TemporaryFolder folder;
  const LayerRecord record = example_layer(3);
  write_layer(folder / "0003.h5", record, "chain");
  const std::string whole = read_bytes(folder / "0003.h5");
  const CompressedLinear& linear = record.linears.at(quantised_name(3));
  for (const at::Tensor& tensor :
       {linear.codes, linear.scale, linear.zero, linear.g_idx,
        record.linears.at(pruned_name(3)).weight, record.changed.begin()->second}) {
    const at::Tensor dense = tensor.contiguous();
    const std::string bytes(static_cast<const char*>(dense.const_data_ptr()), dense.nbytes());
    const size_t at = whole.find(bytes);
    ASSERT_NE(at, std::string::npos);
    std::string damaged = whole;
    damaged[at + bytes.size() / 2] = static_cast<char>(damaged[at + bytes.size() / 2] ^ 0x40);
    write_bytes(folder / "0003.h5", damaged);
    for (const auto& action : {std::function<void()>([&] { read_layer(folder / "0003.h5"); }),
                               std::function<void()>([&] { check_layer(folder / "0003.h5"); })}) {
      expect_error(ExitCode::data, "0003.h5: damaged: content hash found ", action);
      expect_error(ExitCode::data, "expected " + record.content_hash(), action);
    }
  }
}

/// Any byte of the file, changed in several ways: the same content or one error, never a crash.
TEST(LayerFile, DamageAnywhereIsSeenOrHarmless) {
  const TemporaryFolder folder;
  const LayerRecord record = example_layer(3);
  write_layer(folder / "0003.h5", record, "chain");
  const std::string whole = read_bytes(folder / "0003.h5");
  int refused = 0, harmless = 0;
  for (size_t at = 0; at < whole.size(); at += 37) {
    std::string damaged = whole;
    damaged[at] = static_cast<char>(damaged[at] ^ (at % 2 ? 0x01 : 0xff));
    write_bytes(folder / "b.h5", damaged);
    try {
      const LayerRecord back = read_layer(folder / "b.h5");
      EXPECT_EQ(back.content_hash(), record.content_hash());
      ++harmless;
    } catch (const Error& error) {
      EXPECT_EQ(std::string(error.what()).find('\n'), std::string::npos) << error.what();
      ++refused;
    }
  }
  EXPECT_GT(refused, harmless) << refused << " refused, " << harmless << " harmless";
}

TEST(LayerFile, TruncationIsAnError) {
  const TemporaryFolder folder;
  write_layer(folder / "0003.h5", example_layer(3), "chain");
  const std::string whole = read_bytes(folder / "0003.h5");
  for (size_t size = 0; size < whole.size(); size += 97) {
    write_bytes(folder / "b.h5", whole.substr(0, size));
    expect_error(ExitCode::data, "b.h5", [&] { read_layer(folder / "b.h5"); });
  }
}

TEST(LayerFile, OtherFilesAreRefused) {
  const TemporaryFolder folder;
  CalibrationSet set = example_calibration();
  write_calibration(folder / "a.h5", set);
  expect_error(ExitCode::data, "not a layer file", [&] { read_layer(folder / "a.h5"); });
  write_layer(folder / "0003.h5", example_layer(3), "");
  expect_error(ExitCode::data, "not a calibration file",
               [&] { read_calibration(folder / "0003.h5"); });
}

/// A writer that is killed at a random moment leaves the old layer or the new one.
TEST(LayerFile, KilledWriterLeavesAWholeFile) {
  const TemporaryFolder folder;
  LayerRecord old_record = example_layer(3), new_record = example_layer(3);
  old_record.changed["model.norm.weight"] = at::zeros({100'000});
  new_record.changed["model.norm.weight"] = at::ones({100'000});
  write_layer(folder / "0003.h5", old_record, "old");
  int unfinished = 0;
  for (int kill = 0; kill < 20; ++kill) {
    const pid_t child = ::fork();
    if (child == 0) {
      while (true) {
        write_layer(folder / "0003.h5", new_record, "new");
        write_layer(folder / "0003.h5", old_record, "old");
      }
    }
    ::usleep(static_cast<useconds_t>(2000 + 1700 * kill));
    ::kill(child, SIGKILL);
    ::waitpid(child, nullptr, 0);
    const std::string hash = read_layer(folder / "0003.h5").content_hash();
    EXPECT_TRUE(hash == old_record.content_hash() || hash == new_record.content_hash());
    for (const auto& entry : fs::directory_iterator(folder.path()))
      unfinished += entry.path().extension() == ".tmp";
  }
  EXPECT_GT(unfinished, 0) << "no kill hit a write: the test shows nothing";
}

TEST(CalibrationFile, EverythingComesBack) {
  const TemporaryFolder folder;
  const CalibrationSet set = example_calibration();
  write_calibration(folder / "a.h5", set);
  const CalibrationSet back = read_calibration(folder / "a.h5");
  expect_same_tensor(back.tokens, set.tokens);
  expect_same_tensor(back.lengths, set.lengths);
  expect_same_tensor(back.log_prob, set.log_prob);
  expect_same_tensor(back.temperature, set.temperature);
  EXPECT_EQ(back.source, set.source);
  EXPECT_EQ(back.settings, set.settings);
  EXPECT_EQ(back.seed, set.seed);
  EXPECT_EQ(back.set, set.set);
  EXPECT_EQ(back.content_hash(), set.content_hash());
}

TEST(CalibrationFile, ContentHashIsOfTokensAndLengths) {
  CalibrationSet set = example_calibration();
  const std::string hash = set.content_hash();
  set.log_prob += 1;
  set.seed = 7;
  EXPECT_EQ(set.content_hash(), hash);
  set.tokens[0][0] += 1;
  EXPECT_NE(set.content_hash(), hash);
}

TEST(CalibrationFile, DamageIsSeen) {
  const TemporaryFolder folder;
  const CalibrationSet set = example_calibration();
  write_calibration(folder / "a.h5", set);
  const std::string whole = read_bytes(folder / "a.h5");
  for (const auto& [tensor, what] :
       {std::pair(set.tokens, "content hash"), std::pair(set.log_prob, "hash of the whole")}) {
    const std::string bytes(static_cast<const char*>(tensor.const_data_ptr()), tensor.nbytes());
    std::string damaged = whole;
    damaged[whole.find(bytes)] ^= 1;
    write_bytes(folder / "b.h5", damaged);
    expect_error(ExitCode::data, fmt::format("b.h5: damaged: {} found", what),
                 [&] { read_calibration(folder / "b.h5"); });
  }
}

TEST(CalibrationFile, ShapesThatDoNotFitAreRefused) {
  const TemporaryFolder folder;
  CalibrationSet set = example_calibration();
  set.lengths = at::ones({2}, at::kInt);
  write_calibration(folder / "a.h5", set);
  expect_error(ExitCode::data, "a.h5:/lengths: is I32 [2], expected I32 [5]",
               [&] { read_calibration(folder / "a.h5"); });
}

}  // namespace
}  // namespace selfcal
