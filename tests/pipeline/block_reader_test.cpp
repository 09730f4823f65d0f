// Weights of a model's blocks for a team, the next block's on their way while it works on one: by
// MPI, and over the double of NCCL.
#include "pipeline/block_reader.hpp"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <future>

#include "comm/agreement.hpp"
#include "comm/nccl/nccl_group.hpp"
#include "tests/comm/nccl_double.hpp"

namespace selfcal {
namespace {

const kernels::Device library{at::kCPU, &kernels::library_operations, nullptr};

class BlockReaders : public testing::TestWithParam<bool> {  // by NCCL
 protected:
  BlockReaders() {
    if (!GetParam()) return;
    vendor = std::make_shared<testing_support::NcclDouble>();
    NcclOptions options;
    options.device = 0;  // what host memory counts as
    team = Communicator::nccl(team, vendor, options);
  }
  void TearDown() override {
    if (vendor) {
      EXPECT_TRUE(vendor->violations.empty()) << vendor->violations.front();
    }
  }

  BlockReader reader(BlockSource source) {
    return {*model,           GetParam() ? library : kernels::Device{}, timer, team, layers,
            std::move(source)};
  }

  BlockWeights expected(int64_t layer) const {
    BlockWeights weights = model->read_block(layer);
    for (auto& [name, tensor] : weights) tensor = tensor + layer;
    return weights;
  }
  /// Reads a block once `opened` is there, which only the first rank waits for.
  BlockSource behind(std::shared_future<void> opened) const {
    return [this, opened](int64_t layer) {
      if (layer == 1) opened.wait();
      return expected(layer);
    };
  }

  void expect_block(const BlockWeights& found, int64_t layer) const {
    const BlockWeights weights = expected(layer);
    ASSERT_EQ(found.size(), weights.size());
    for (const auto& [name, tensor] : weights)
      EXPECT_TRUE(at::equal(found.at(name), tensor)) << layer << " " << name;
  }

  /// Whether the first rank has sent a block since it had sent so many bytes.
  bool has_sent(int64_t before) const {
    return any(team, team.rank() == 0 && team.activity().bytes_sent() - before > block_bytes);
  }
  void share_until_sent(BlockReader& blocks) const {
    const int64_t before = team.activity().bytes_sent();
    if (team.size() == 1) return blocks.share_ahead();
    while (!has_sent(before)) blocks.share_ahead();
  }

  static constexpr int64_t layers = 2, block_bytes = 10'000;  // of the latter more
  std::shared_ptr<testing_support::NcclDouble> vendor;
  Communicator team = Communicator::world();
  PhaseTimer timer;
  ThreadPool pool{1, kernels::use_one_library_thread};
  std::unique_ptr<Model> model =
      open_model(fs::path(SELFCAL_TEST_DATA) / "models" / "tied-bf16", "auto", {&pool, {}});
};

TEST_P(BlockReaders, GiveEachRankEachBlock) {
  BlockReader blocks = reader([&](int64_t layer) { return expected(layer); });
  for (int64_t layer = 0; layer < layers; ++layer) expect_block(blocks.read(layer), layer);
}

TEST_P(BlockReaders, SendTheNextBlockBeforeItIsAskedFor) {
  std::promise<void> opens;
  BlockReader blocks = reader(behind(opens.get_future().share()));
  expect_block(blocks.read(0), 0);
  const int64_t before = team.activity().bytes_sent();
  blocks.share_ahead();
  EXPECT_FALSE(has_sent(before));  // there is nothing yet
  opens.set_value();
  share_until_sent(blocks);
  std::vector<int64_t> ones{1};
  team.all_reduce(std::span(ones), ReduceOp::sum);  // other work
  EXPECT_EQ(ones[0], team.size());
  const int64_t sent = team.activity().bytes_sent();
  blocks.share_ahead();
  expect_block(blocks.read(1), 1);
  EXPECT_EQ(team.activity().bytes_sent(), sent);
  blocks.share_ahead();  // there is no other block
}

TEST_P(BlockReaders, EndABroadcastThatNobodyAsksFor) {
  {
    BlockReader blocks = reader([&](int64_t layer) { return expected(layer); });
    blocks.read(0);
    share_until_sent(blocks);
  }
  BlockReader again = reader([&](int64_t layer) { return expected(layer); });
  expect_block(again.read(1), 1);
}

TEST_P(BlockReaders, TellAllRanksWhatCannotBeRead) {
  BlockReader blocks = reader([&](int64_t layer) {
    if (layer == 1) fail(ExitCode::data, "block {} is cut short", layer);
    return expected(layer);
  });
  blocks.read(0);
  for (int i = 0; i < 3; ++i) blocks.share_ahead();
  try {
    blocks.read(1);
    FAIL() << "no error";
  } catch (const AgreedError& error) {
    EXPECT_EQ(error.code(), ExitCode::data);
    EXPECT_EQ(error.what(), team.size() == 1 ? std::string("block 1 is cut short")
                                             : "block 1 is cut short [rank 0]");
  }
}

INSTANTIATE_TEST_SUITE_P(ByMpiAndNccl, BlockReaders, testing::Bool());

}  // namespace
}  // namespace selfcal
