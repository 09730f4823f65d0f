#include "storage/checkpoint.hpp"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "temporary_folder.hpp"

namespace selfcal {
namespace {

void expect_refused(const TemporaryFolder& folder, const std::string& part) {
  expect_error(ExitCode::data, part, [&] { Checkpoint checkpoint(folder.path()); });
}

/// A model directory of two shards.
void write_sharded(const TemporaryFolder& folder) {
  write_bytes(folder / "config.json", R"({"model_type": "llama"})");
  write_tensor_file(folder / "a.safetensors", {{"x", at::ones({2, 3})}});
  write_tensor_file(folder / "b.safetensors",
                    {{"y", at::zeros({4}, at::kHalf)}, {"z", at::ones({1})}});
  write_bytes(
      folder / "model.safetensors.index.json",
      R"({"metadata":{},"weight_map":{"x":"a.safetensors","y":"b.safetensors","z":"b.safetensors"}})");
}

TEST(Checkpoint, ReadsOneFileAndManyAlike) {
  const TemporaryFolder folder;
  write_sharded(folder);
  const Checkpoint sharded(folder.path());
  EXPECT_EQ(sharded.names(), (std::vector<std::string>{"x", "y", "z"}));
  EXPECT_EQ(sharded.entry("y").dtype, at::kHalf);
  EXPECT_EQ(sharded.file_of("z").filename(), "b.safetensors");
  EXPECT_EQ(sharded.config_text(), R"({"model_type": "llama"})");
  EXPECT_TRUE(at::equal(sharded.read("x", {2, 3}), at::ones({2, 3})));

  fs::remove(folder / "model.safetensors.index.json");
  write_tensor_file(folder / "model.safetensors", {{"x", at::ones({2, 3})}});
  const Checkpoint single(folder.path());
  EXPECT_TRUE(at::equal(single.read("x", {2, 3}), at::ones({2, 3})));
  EXPECT_FALSE(single.contains("y"));
  EXPECT_NE(single.identity(), sharded.identity());
}

TEST(Checkpoint, NamesFileTensorFoundAndExpected) {
  const TemporaryFolder folder;
  write_sharded(folder);
  const Checkpoint checkpoint(folder.path());
  expect_error(ExitCode::data, "a.safetensors: tensor 'x' is [2, 3], expected [3, 2]", [&] {
    checkpoint.read("x", {3, 2});
  });
  expect_error(ExitCode::data, "no tensor 'w' in its 2 weight files",
               [&] { checkpoint.read("w", {1}); });
  expect_error(ExitCode::data, "no tensor 'w'", [&] { checkpoint.entry("w"); });
}

TEST(Checkpoint, IdentityFollowsConfigAndHeaders) {
  const TemporaryFolder folder;
  write_sharded(folder);
  const std::string identity = Checkpoint(folder.path()).identity();
  EXPECT_EQ(Checkpoint(folder.path()).identity(), identity);
  write_bytes(folder / "config.json", R"({"model_type": "opt"})");
  EXPECT_NE(Checkpoint(folder.path()).identity(), identity);
}

TEST(Checkpoint, DirectoriesThatAreNotModels) {
  const TemporaryFolder folder;
  expect_error(ExitCode::data, "no such model directory",
               [&] { Checkpoint checkpoint(folder / "absent"); });
  expect_refused(folder, "no config.json");
  write_bytes(folder / "config.json", "{}");
  expect_refused(folder, "no weights: expected model.safetensors");
  write_bytes(folder / "pytorch_model.bin", "x");
  expect_refused(folder, "tools/convert_bin");
  write_bytes(folder / "config.json", "{\"a\": ");
  expect_refused(folder, "config.json: not valid JSON");
  write_bytes(folder / "config.json", "[]");
  expect_refused(folder, "expected a JSON object");
  write_bytes(folder / "config.json", R"({"a": 1, "b": {"a": 2}, "a": 3})");
  expect_refused(folder, "'a' is given twice");
  write_bytes(folder / "config.json", "{\"a\":" + std::string(1'000'000, '['));
  expect_refused(folder, "nested deeper");
}

TEST(Checkpoint, IndexesThatLie) {
  const TemporaryFolder folder;
  write_sharded(folder);
  const auto expect_index_refused = [&](const std::string& map, const std::string& part) {
    write_bytes(folder / "model.safetensors.index.json", "{\"weight_map\":" + map + "}");
    expect_refused(folder, part);
  };
  expect_index_refused("{}", "no weight_map");
  expect_index_refused("[]", "no weight_map");
  expect_index_refused(R"({"x":3})", "not a file name");
  expect_index_refused(R"({"x":""})", "not a file name");
  expect_index_refused(R"({"x":"../a.safetensors"})", "not a file name");
  expect_index_refused(R"({"x":"c.safetensors"})",
                       "names c.safetensors (tensor 'x'), which is missing");
  expect_index_refused(R"({"w":"a.safetensors"})", "tensor 'w' is not in a.safetensors");
  expect_index_refused(R"({"x":"b.safetensors","y":"a.safetensors"})",
                       "'x' is not in b.safetensors");
  expect_index_refused(R"({"x":"a.safetensors","x":"b.safetensors"})", "'x' is given twice");
  write_tensor_file(folder / "c.safetensors", {{"x", at::ones({2, 3})}, {"w", at::ones({1})}});
  expect_index_refused(R"({"x":"a.safetensors","w":"c.safetensors"})",
                       "a.safetensors: tensor 'x' is in c.safetensors too");
}

}  // namespace
}  // namespace selfcal
