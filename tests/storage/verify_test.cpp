#include "storage/verify.hpp"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "base/hash.hpp"
#include "example_model.hpp"
#include "storage/gathered_checkpoint.hpp"
#include "storage/inspect.hpp"
#include "temporary_folder.hpp"

namespace selfcal {
namespace {

class Verify : public testing::Test {
 protected:
  void SetUp() override {
    run_.prepare("model: x\n");
    make_folder(run_.path() / "calibration");
    write_calibration(run_.calibration("a"), example_calibration());
    write_example_run(folder_ / "model", job_);
    dense_.emplace(folder_ / "model");
    gather();
  }

  void gather() {
    GatherSettings settings;
    settings.layers = example_layers;
    settings.job_id = example_layer(0).job_id;
    gather_checkpoint(Communicator::local(), *dense_, job_, settings);
  }

  /// Exactly one problem, which has `part` in it.
  void expect_problem(const std::string& part, const Checkpoint* dense = nullptr) {
    const Verdict verdict = verify_run(run_, dense);
    ASSERT_EQ(verdict.problems.size(), 1U) << to_text(verdict);
    EXPECT_NE(verdict.problems[0].find(part), std::string::npos) << verdict.problems[0];
    EXPECT_FALSE(verdict.whole());
  }

  void flip_inside(const fs::path& path, const at::Tensor& tensor) {
    const at::Tensor dense = tensor.contiguous();
    const std::string bytes(static_cast<const char*>(dense.const_data_ptr()), dense.nbytes());
    std::string whole = read_bytes(path);
    const size_t at = whole.find(bytes);
    ASSERT_NE(at, std::string::npos);
    whole[at] ^= 1;
    write_bytes(path, whole);
  }

  TemporaryFolder folder_;
  RunDirectory run_{folder_ / "run"};
  JobDirectory job_ = run_.job("main");
  std::optional<Checkpoint> dense_;
};

TEST_F(Verify, WholeRunIsWhole) {
  const Verdict verdict = verify_run(run_);
  EXPECT_TRUE(verdict.whole()) << to_text(verdict);
  EXPECT_NE(to_text(verdict).find("5 of 5 layers whole"), std::string::npos);
  EXPECT_NE(to_text(verdict).find("model.h5: equals its layers"), std::string::npos);
}

TEST_F(Verify, NeedsARun) {
  expect_error(ExitCode::config, "no run.yaml",
               [&] { verify_run(RunDirectory(folder_ / "model")); });
}

TEST_F(Verify, DamageIsNamed) {
  flip_inside(job_.layer(2), example_layer(2).linears.at(quantised_name(2)).codes);
  expect_problem("0002.h5: damaged: content hash found");
}

TEST_F(Verify, MissingLayersAreNamed) {
  fs::remove(job_.layer(1));
  expect_problem("0001.h5: missing");
}

TEST_F(Verify, LayersOfAnotherPrefixAreNamed) {
  LayerRecord other = example_layer(2);
  other.changed.begin()->second += 1;
  const std::string previous = read_layer_header(job_.layer(1)).chain;
  write_layer(job_.layer(2), other, chain_hash(other.job_id, previous, other.content_hash()));
  fs::remove(job_.gathered());
  expect_problem("0003.h5: its chain is not that of the layer before");
}

TEST_F(Verify, LayersThatStandAloneAreAChainToo) {
  for (int64_t layer = 0; layer < example_layers; ++layer) {
    const LayerRecord record = example_layer(layer);
    write_layer(job_.layer(layer), record, chain_hash(record.job_id, "", record.content_hash()));
  }
  EXPECT_TRUE(verify_run(run_).whole()) << to_text(verify_run(run_));
}

TEST_F(Verify, DamagedCalibrationIsNamed) {
  flip_inside(run_.calibration("a"), example_calibration().tokens);
  expect_problem("a.h5: damaged: content hash");
}

TEST_F(Verify, GatheredCheckpointMustEqualItsLayers) {
  flip_inside(job_.gathered(), example_layer(3).linears.at(quantised_name(3)).scale);
  expect_problem("model.h5: damaged: hash of 'model.layers.3.mlp.up_proj.weight/scale'");
  gather();
  flip_inside(job_.gathered(), dense_->read("model.embed_tokens.weight", {101, 32}));
  EXPECT_TRUE(verify_run(run_).whole()) << "seen only beside the dense model";
}

TEST_F(Verify, DenseModelMustBeTheOneThatWasCompressed) {
  for (int64_t layer = 0; layer < example_layers; ++layer) fs::remove(job_.layer(layer));
  LayerRecord record = example_layer(0);
  const at::Tensor source = dense_->read(quantised_name(0), {48, 32});
  record.source_hashes = {
      {quantised_name(0), Hasher().bytes(source.const_data_ptr(), source.nbytes()).digest()}};
  write_layer(job_.layer(0), record, chain_hash(record.job_id, "", record.content_hash()));
  fs::remove(job_.gathered());
  EXPECT_TRUE(verify_run(run_, &*dense_).whole()) << to_text(verify_run(run_, &*dense_));
  record.source_hashes = {{quantised_name(0), "00"}};
  write_layer(job_.layer(0), record, chain_hash(record.job_id, "", record.content_hash()));
  expect_problem("is not the one that was compressed", &*dense_);
}

TEST_F(Verify, UnfinishedFilesAreMentionedOnly) {
  write_bytes(job_.layers() / ".0004.h5.77.tmp", "x");
  const Verdict verdict = verify_run(run_);
  EXPECT_TRUE(verdict.whole());
  EXPECT_NE(to_text(verdict).find("left by a writer that was killed"), std::string::npos);
  write_bytes(job_.layers() / "notes.h5", "x");
  expect_problem("not a layer's file name");
}

TEST_F(Verify, InspectTellsWhatFilesHold) {
  const auto expect_parts = [](const std::string& text, const std::vector<std::string>& parts) {
    for (const auto& part : parts)
      EXPECT_NE(text.find(part), std::string::npos) << "'" << part << "' in\n" << text;
  };
  expect_parts(inspect(job_.layer(2)),
               {"layer: 2\n", "job_id: 0123456789abcdef", quantised_name(2),
                "[48, 32] 4 bits, group 16, asymmetric, scale BF16, column index",
                "error 0.01 (control 0.02)", "after 2 retries", "pruned", "input_layernorm"});
  expect_parts(inspect(job_.gathered()),
               {"kind: model", "model.embed_tokens.weight", "[101, 32]", "4 bits"});
  expect_parts(inspect(run_.calibration("a")), {"5 sequences of 7 tokens from self, seed -4, set 1",
                                                "35 tokens drawn at temperatures 1 to 1"});
  expect_parts(inspect(folder_ / "model" / "model.safetensors"),
               {"23 tensors", "lm_head.scale", "F32  []"});
  expect_parts(inspect(folder_ / "model"), {"identity: ", "23 tensors"});
  expect_error(ExitCode::data, "neither an HDF5 file",
               [&] { inspect(folder_ / "model" / "config.json"); });
  expect_error(ExitCode::io, "absent", [&] { inspect(folder_ / "absent"); });
  write_bytes(folder_ / "bad.h5", std::string("\x89HDF\r\n\x1a\n") + "rubbish");
  expect_error(ExitCode::data, "bad.h5", [&] { inspect(folder_ / "bad.h5"); });
}

}  // namespace
}  // namespace selfcal
