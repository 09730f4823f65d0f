// A whole job, sampling and GPTQ, with what a GPU computes with, on host memory: equal content
// hashes for one rank and for all.
#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>

#include "base/error.hpp"
#include "comm/nccl/nccl_group.hpp"
#include "pipeline/compress.hpp"
#include "storage/layer_file.hpp"
#include "storage/run_directory.hpp"
#include "tests/comm/nccl_double.hpp"

namespace selfcal {
namespace {

const kernels::Device library{at::kCPU, &kernels::library_operations};

class DeviceJob : public testing::Test {
 protected:
  void SetUp() override {
    kernels::use_one_library_thread();
    std::string name = (fs::temp_directory_path() / "selfcal-device-XXXXXX").string();
    if (world.rank() == 0) {
      ASSERT_NE(mkdtemp(name.data()), nullptr);
    }
    world.broadcast(std::as_writable_bytes(std::span(name)), 0);
    folder = name;
  }
  void TearDown() override {
    world.barrier();
    if (world.rank() == 0) fs::remove_all(folder);
  }

  /// Content hashes of the layers of a job that `ranks` do.
  std::vector<std::string> run(const Communicator& ranks, const std::string& name,
                               const std::string& settings, const kernels::Device& device) {
    const fs::path output = folder / name;
    const auto jobs = parse_jobs(
        "model: {path: " + (fs::path(SELFCAL_TEST_DATA) / "models" / "tied-bf16").string() +
            "}\noutput: " + output.string() + "\nexport: []\n" +
            "calibration: {sequences: 8, length: 24, micro_batch: 2}\n" + settings,
        "test");
    ThreadPool pool(1, kernels::use_one_library_thread);
    const StopSignal stop;
    compress(jobs, {ranks, stop, {&pool, device}, device.uses_library() ? "library" : ""});
    std::vector<std::string> hashes;
    for (int64_t layer = 0;; ++layer) {
      const fs::path file = RunDirectory(output).job(jobs.front().name).layer(layer);
      if (!fs::exists(file)) return hashes;
      hashes.push_back(read_layer_header(file).content_hash);
    }
  }

  const Communicator world = Communicator::world();
  fs::path folder;
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

TEST_F(DeviceJob, StatisticsMeetByNccl) {
  const std::string method =
      "method: {name: gptq, bits: 4, group_size: 16}\nlayout: {mode: shared}\n";
  const auto vendor = std::make_shared<testing_support::NcclDouble>();
  NcclOptions options;
  options.device = 0;  // what host memory counts as
  const auto found = run(Communicator::nccl(world, vendor, options), "nccl", method, library);
  EXPECT_EQ(found, run(world, "mpi", method, library));
  EXPECT_TRUE(vendor->violations.empty()) << vendor->violations.front();
  // Two layers, each with the inputs of q k v, o, gate up, and down; of one block of columns each.
  const auto reductions = std::ranges::count_if(vendor->calls, [](const std::string& call) {
    return call.find("all_reduce") != std::string::npos;
  });
  EXPECT_EQ(reductions, 8);
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
