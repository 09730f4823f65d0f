// An export by several ranks: the same files as by one, or none.
#include <gtest/gtest.h>

#include "../storage/example_layer.hpp"
#include "../storage/shared_folder.hpp"
#include "comm/agreement.hpp"
#include "export_support.hpp"

namespace selfcal {
namespace {

std::map<std::string, std::string> files_of(const fs::path& folder) {
  std::map<std::string, std::string> files;
  for (const auto& entry : fs::directory_iterator(folder))
    files[entry.path().filename().string()] = read_bytes(entry.path());
  return files;
}

class ExportTogether : public testing::Test {
 protected:
  ExportTogether() {
    if (world_.rank() == 0)
      export_example::write(
          folder_ / "model", job_, at::kBFloat16, false,
          [](int64_t layer, const std::string& name, int64_t rows, int64_t columns) {
            if (name == "mlp.up_proj") return example_pruned(rows, columns, layer, at::kBFloat16);
            return example_quantised(rows, columns, 4, 16, false, layer, at::kBFloat16);
          });
    world_.barrier();
    dense_.emplace(folder_ / "model");
  }
  ExportInputs inputs() const {
    return {*dense_, job_, export_example::layers, export_example::job_id};
  }
  /// What lies beside the model and the job.
  std::set<std::string> found() const {
    std::set<std::string> names;
    for (const auto& entry : fs::directory_iterator(folder_ / ""))
      names.insert(entry.path().filename().string());
    names.erase("model");
    names.erase("job");
    return names;
  }

  const Communicator world_ = Communicator::world();
  const SharedFolder folder_{world_};
  JobDirectory job_{folder_ / "job"};
  std::optional<Checkpoint> dense_;
};

TEST_F(ExportTogether, SameFilesOnAnyNumberOfRanks) {
  for (const auto format :
       {ExportFormat::compressed_tensors, ExportFormat::gptq_v2, ExportFormat::dense})
    for (const uint64_t shard_bytes : {uint64_t{5'000'000'000}, uint64_t{20'000}}) {
      std::map<std::string, std::string> expected;
      for (int size = 1; size <= world_.size(); ++size) {
        const Communicator some = world_.split(world_.rank() < size ? 0 : 1);
        if (world_.rank() < size)
          export_model(some, inputs(), format, folder_ / "out", shard_bytes);
        world_.barrier();
        if (world_.rank() == 0) {
          const auto files = files_of(folder_ / "out");
          EXPECT_GE(files.size(), shard_bytes > 100'000 ? 4u : 7u);
          if (expected.empty()) expected = files;
          EXPECT_EQ(files, expected) << size << " ranks, shards of " << shard_bytes;
          EXPECT_EQ(found(), std::set<std::string>{"out"});
          fs::remove_all(folder_ / "out");
        }
        world_.barrier();
      }
    }
}

TEST_F(ExportTogether, AllKnowWhatFailsOnOne) {
  if (world_.rank() == 0) {
    fs::create_directories(folder_ / "there");
    damage_codes(job_.layer(export_example::layers - 1));
  }
  world_.barrier();
  expect_error(ExitCode::usage, "exists already",
               [&] { export_model(world_, inputs(), ExportFormat::gptq_v2, folder_ / "there"); });
  expect_error(ExitCode::data, "0002.h5: damaged: content hash found",
               [&] { export_model(world_, inputs(), ExportFormat::gptq_v2, folder_ / "out"); });
  world_.barrier();
  EXPECT_EQ(found(), std::set<std::string>{"there"});
}

}  // namespace
}  // namespace selfcal
