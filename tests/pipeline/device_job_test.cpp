// A whole job, sampling and GPTQ, with what a GPU computes with, on host memory: equal content
// hashes for one rank and for all.
#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <tuple>

#include "base/error.hpp"
#include "comm/nccl/nccl_group.hpp"
#include "pipeline/compress.hpp"
#include "stages/solve/cuda/solve_kernels.hpp"
#include "storage/layer_file.hpp"
#include "storage/run_directory.hpp"
#include "tests/comm/nccl_double.hpp"
#include "tests/storage/shared_folder.hpp"

namespace selfcal {
namespace {

/// The kernels' twin, which notes what it is asked for.
class CountedKernels : public SolveKernels {
 public:
  void find_scales(const by_row::Columns& columns, const by_row::TileArrays& arrays) override {
    twin_->find_scales(columns, arrays);
  }
  void solve_block(const by_row::Columns& columns, const by_row::TileArrays& arrays,
                   const by_row::Block& block) override {
    ++blocks;
    EXPECT_EQ(arrays.rows, 256);
    twin_->solve_block(columns, arrays, block);
  }

  int blocks = 0;

 private:
  std::unique_ptr<SolveKernels> twin_ = make_cpu_twin();
};

CountedKernels counted;
const kernels::Device library{at::kCPU, &kernels::library_operations, &counted};

class DeviceJob : public testing::Test {
 protected:
  void SetUp() override { kernels::use_one_library_thread(); }

  /// Content hashes of the layers of all jobs, which `ranks` do.
  std::vector<std::string> run(const Communicator& ranks, const std::string& name,
                               const std::string& settings, const kernels::Device& device) {
    const fs::path output = folder / name;
    const auto jobs = parse_jobs(
        "model: {path: " + (fs::path(SELFCAL_TEST_DATA) / "models" / "tied-bf16").string() +
            "}\noutput: " + output.string() + "\nexport: []\n" +
            "calibration: {sequences: 8, length: 24, micro_batch: 2}\n" + settings,
        "test");
    ThreadPool pool(1, kernels::use_one_library_thread);
    const SharedStop stop(ranks, StopSignal());
    compress(jobs, {ranks, stop, {&pool, device}, device.uses_library() ? "library" : ""});
    std::vector<std::string> hashes;
    for (const auto& job : jobs)
      for (int64_t layer = 0; layer < 2; ++layer)
        hashes.push_back(
            read_layer_header(RunDirectory(output).job(job.name).layer(layer)).content_hash);
    return hashes;
  }

  const Communicator world = Communicator::world();
  const SharedFolder folder{world};
};

TEST_F(DeviceJob, ContentHashesDoNotDependOnRanks) {
  const std::string method = "method: {name: gptq, bits: 4, group_size: 16";
  for (const std::string more : {"}\n", ", propagation: dense}\n"}) {
    const Communicator alone = world.split(world.rank());
    const std::string tag = more.size() > 2 ? "dense" : "sequential";
    const auto one =
        run(alone, tag + "-alone-" + std::to_string(world.rank()), method + more, library);
    EXPECT_FALSE(one.empty());
    for (const std::string layout : {"{mode: shared}", "{mode: split}"}) {
      if (world.size() == 1 && layout.find("split") != std::string::npos) continue;
      const auto all = run(world, tag + (layout.find("split") == std::string::npos ? "-a" : "-b"),
                           method + more + "layout: " + layout + "\n", library);
      EXPECT_EQ(all, one) << layout;
    }
    // Other arithmetic, other bits: the double is not the kernels under another name.
    const auto ours = run(alone, tag + "-ours-" + std::to_string(world.rank()), method + more, {});
    EXPECT_EQ(ours.size(), one.size());
    EXPECT_NE(ours, one);
  }
}

/// The same job over the double of NCCL and over MPI; how often the double's calls were made.
class NcclJob : public DeviceJob {
 protected:
  void compare(const std::string& settings) {
    const auto vendor = std::make_shared<testing_support::NcclDouble>();
    NcclOptions options;
    options.device = 0;  // what host memory counts as
    const auto found = run(Communicator::nccl(world, vendor, options), "nccl", settings, library);
    EXPECT_EQ(found, run(world, "mpi", settings, library));
    EXPECT_TRUE(vendor->violations.empty()) << vendor->violations.front();
    calls = vendor->calls;
  }

  int64_t made(const std::string& name) const {
    return std::ranges::count_if(
        calls, [&](const std::string& call) { return call.substr(0, call.find(' ')) == name; });
  }

  std::vector<std::string> calls;
};

TEST_F(NcclJob, ATeamSharesStatisticsFactorsAndWeights) {
  compare("method: {name: gptq, bits: 4, group_size: 16}\nlayout: {mode: shared}\n");
  const bool together = world.size() > 1;
  // Two layers, each with the inputs of q k v, o, gate up, and down: of one block of columns each,
  // and with a factor each. Seven linear layers and two norms each.
  EXPECT_EQ(made("all_reduce"), together ? 2 * 4 : 0);
  EXPECT_EQ(made("broadcast"), together ? 2 * 4 + 2 * 9 : 0);
  EXPECT_EQ(made("send") + made("receive"), 0);
}

TEST_F(NcclJob, AShardHandsItsOutputsToTheNext) {
  if (world.size() < 2) GTEST_SKIP() << "one rank has one shard";
  compare(
      "method: {name: gptq, bits: 4, group_size: 16}\n"
      "layout: {mode: shared, compressors: {shards: 2}}\n");
  // Eight sequences of two a micro-batch, a leaf each, dealt to a team's ranks.
  const int team = world.size() / 2, leaves = 4 / team;
  EXPECT_EQ(made("send"), world.rank() < team ? leaves : 0);
  EXPECT_EQ(made("receive"), world.rank() < team ? 0 : leaves);
}

/// Shards that work on different jobs at the same time, and ask each other when it suits them.
TEST_F(NcclJob, JobsFlowThroughShards) {
  if (world.size() < 2) GTEST_SKIP() << "one rank has one shard";
  compare(
      "method: {name: gptq, bits: 4, group_size: 16}\nsweep: {seed: [0, 1, 2, 3]}\n"
      "layout: {mode: shared, compressors: {shards: 2}}\n");
  EXPECT_GT(made("send") + made("receive"), 0);
}

TEST_F(NcclJob, HostMethodsTakeWeightsThatCameByNccl) {
  compare(
      "method: {name: awq, bits: 4, group_size: 16, act_order: none}\nlayout: {mode: shared}\n");
}

/// What the device's kernels take, what they leave to the host, and both in one job.
TEST_F(DeviceJob, SolvesAreTheSameOnAllRanks) {
  const std::string by_kernels =
                        "method: {name: sparsegpt, pattern: \"2:4\", bits: 4, group_size: 16}\n",
                    by_host = "method: {name: sparsegpt, sparsity: 0.5}\n",
                    mixed =
                        "method: {name: gptq, group_size: 16}\noverrides: [{match: mlp, method: "
                        "sparsegpt, sparsity: 0.5}]\n";
  for (const auto& [name, method, takes] : {std::tuple{"kernels", by_kernels, true},
                                            {"host", by_host, false},
                                            {"mixed", mixed, true}}) {
    counted.blocks = 0;
    const auto one =
        run(world.split(world.rank()), name + std::to_string(world.rank()), method, library);
    EXPECT_EQ(counted.blocks > 0, takes) << name;
    EXPECT_EQ(run(world, std::string(name) + "-all", method, library), one) << name;
  }
}

TEST_F(DeviceJob, AwqComesToTheSameOnAllRanks) {
  for (const std::string loss : {"linear", "module"}) {
    const std::string method =
        "method: {name: awq, bits: 4, group_size: 16, act_order: none, scale_loss: " + loss + "}\n";
    const auto one =
        run(world.split(world.rank()), loss + std::to_string(world.rank()), method, library);
    EXPECT_EQ(run(world, loss + "-all", method, library), one);
  }
}

}  // namespace
}  // namespace selfcal
