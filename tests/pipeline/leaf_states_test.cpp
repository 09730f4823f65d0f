// A block's first pass over leaves that are still on their way: each is worked on before the next
// one is waited for, and a wait that ends with a stop ends the pass on all ranks.
#include "pipeline/leaf_states.hpp"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <tuple>

#include "comm/agreement.hpp"

namespace selfcal {
namespace {

constexpr int64_t leaf_count = 4, rows = 2, length = 16;  // leaves of each rank

/// Propagation, and whether states are kept.
class ComingLeaves : public testing::TestWithParam<std::tuple<Propagation, bool, LeafMemory>> {
 protected:
  ComingLeaves() {
    const auto [propagation, at_once, memory] = GetParam();
    config.propagation = propagation;
    config.true_sequential = at_once;
    config.method.group_size = -1;
    config.method.scale_dtype = at::kFloat;
    at::manual_seed(5);
    for (int64_t i = 0; i < leaf_count; ++i)
      embedded.push_back(
          at::randn({rows, length, model->shape().hidden}).to(model->shape().compute_dtype));
  }
  static void SetUpTestSuite() { kernels::use_one_library_thread(); }

  LayerWork work() {
    return {*model,      config,
            world,       stop,
            timer,       pace,
            {&pool, {}}, leaf_count * rows * length * world.size(),
            {},          std::get<LeafMemory>(GetParam())};
  }

  /// Leaves that note when they come, among the phases that the rank goes through.
  HiddenStates coming() {
    HiddenStates leaves;
    for (size_t i = 0; i < embedded.size(); ++i)
      leaves.emplace_back([this, i] {
        events.push_back(std::to_string(i));
        return embedded[i];
      });
    return leaves;
  }
  HiddenStates all_there() { return {embedded.begin(), embedded.end()}; }

  /// Whether statistics were taken between the arrivals of one leaf and the next.
  void expect_work_between_arrivals() {
    for (size_t i = 0; i + 1 < embedded.size(); ++i) {
      const auto from = std::ranges::find(events, std::to_string(i)),
                 to = std::ranges::find(events, std::to_string(i + 1));
      ASSERT_LT(from, to) << i;
      EXPECT_NE(std::find(from, to, "statistics"), to) << i;
    }
  }

  static void expect_equal(const HiddenStates& found, const HiddenStates& expected) {
    ASSERT_EQ(found.size(), expected.size());
    for (size_t i = 0; i < found.size(); ++i)
      EXPECT_TRUE(at::equal(found[i].get(), expected[i].get())) << i;
  }

  std::vector<std::string> events;
  ThreadPool pool{1, kernels::use_one_library_thread};
  std::unique_ptr<Model> model =
      open_model(fs::path(SELFCAL_TEST_DATA) / "models" / "llama3", "auto", {&pool, {}});
  RunConfig config;
  SolvePace pace;
  PhaseTimer timer{
      [this](Phase phase) { events.emplace_back(phase_names[static_cast<size_t>(phase)]); }};
  const Communicator world = Communicator::world();
  const SharedStop stop{world, StopSignal()};
  std::vector<at::Tensor> embedded;
};

TEST_P(ComingLeaves, AreWorkedOnOneByOne) {
  HiddenStates leaves = coming(), expected = all_there();
  const CompressedBlock block = compress_layer(work(), 0, model->read_block(0), leaves);
  expect_work_between_arrivals();
  const CompressedBlock same = compress_layer(work(), 0, model->read_block(0), expected);
  expect_equal(leaves, expected);
  for (const auto& [name, linear] : block.linears)
    EXPECT_TRUE(at::equal(linear.weight, same.linears.at(name).weight)) << name;
}

TEST_P(ComingLeaves, AreMeasuredForManyJobsOneByOne) {
  if (config.propagation != Propagation::dense) GTEST_SKIP() << "jobs share with dense only";
  HiddenStates leaves = coming(), expected = all_there();
  const BlockWeights weights = model->read_block(0);
  const BlockNeeds needs = *shared_needs(*model, config, 0);
  const HiddenStates kept = leaves;
  measure_block(work(), 0, weights, needs, leaves);
  expect_work_between_arrivals();
  expect_equal(kept, all_there());
  measure_block(work(), 0, weights, needs, expected);
  expect_equal(leaves, expected);
}

TEST_P(ComingLeaves, AreTakenThoughNothingIsCompressed) {
  config.skip = {".*"};
  HiddenStates leaves = coming(), expected = all_there();
  EXPECT_TRUE(compress_layer(work(), 0, model->read_block(0), leaves).linears.empty());
  forward_leaves(model->block(0), model->read_block(0), expected);
  expect_equal(leaves, expected);
}

TEST_P(ComingLeaves, AStopWhileOneIsOnItsWayIsEveryRanks) {
  HiddenStates leaves = coming();
  if (world.rank() + 1 == world.size())
    leaves.back() = HiddenState([]() -> at::Tensor { throw Stopped(); });
  EXPECT_THROW(compress_layer(work(), 0, model->read_block(0), leaves), Stopped);
}

TEST_P(ComingLeaves, AnErrorWhileOneIsOnItsWayLeavesTheOthersComing) {
  HiddenStates leaves = coming();
  if (world.rank() + 1 == world.size())
    leaves[1] = HiddenState([]() -> at::Tensor { fail(ExitCode::io, "lost"); });
  EXPECT_THROW(compress_layer(work(), 0, model->read_block(0), leaves), AgreedError);
  EXPECT_TRUE(at::equal(leaves.back().get(), embedded.back()));
}

INSTANTIATE_TEST_SUITE_P(
    Modes, ComingLeaves,
    testing::Combine(testing::Values(Propagation::sequential, Propagation::dense), testing::Bool(),
                     testing::Values(LeafMemory::keep, LeafMemory::recompute)));

/// A replayed block.
TEST(ForwardLeaves, PassesALeafThroughBeforeItWaitsForTheNext) {
  kernels::use_one_library_thread();
  ThreadPool pool(1, kernels::use_one_library_thread);
  const auto model =
      open_model(fs::path(SELFCAL_TEST_DATA) / "models" / "llama3", "auto", {&pool, {}});
  const at::Tensor input =
      at::randn({rows, length, model->shape().hidden}).to(model->shape().compute_dtype);
  const BlockWeights weights = model->read_block(0);
  const at::Tensor output = forward(model->block(0), input, weights);
  HiddenStates leaves{input};
  leaves.emplace_back([&] {
    EXPECT_TRUE(at::equal(leaves.front().get(), output));
    return input;
  });
  forward_leaves(model->block(0), weights, leaves);
  EXPECT_TRUE(at::equal(leaves.back().get(), output));
}

}  // namespace
}  // namespace selfcal
