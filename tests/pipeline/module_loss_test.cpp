// AWQ's loss at the output of a module: against the forward of the block, and the same from any
// dealing of leaves to ranks.
#include "pipeline/module_loss.hpp"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "stages/solve/awq.hpp"

namespace selfcal {
namespace {

constexpr int64_t leaf_count = 5, rows = 2, length = 16;

/// The first block of a model, and leaves that ranks are dealt in turn.
class ModuleLosses : public testing::TestWithParam<const char*> {
 protected:
  ModuleLosses() {
    at::manual_seed(7);
    for (int64_t i = 0; i < leaf_count; ++i)
      hidden.push_back(
          at::randn({rows, length, model->shape().hidden}).to(model->shape().compute_dtype));
    settings.name = MethodName::awq;
    settings.bits = 3;
    settings.group_size = 16;
    settings.symmetric = false;
    settings.act_order = ActOrder::none;
  }
  static void SetUpTestSuite() { kernels::use_one_library_thread(); }

  /// Losses of the scales at the pair's module, by the ranks of `team`.
  at::Tensor losses(const Communicator& team, const ScalePair& pair, const at::Tensor& scales,
                    int64_t step, LeafMemory memory = LeafMemory::keep) {
    std::vector<Leaf> leaves;
    HiddenStates mine;
    for (int64_t i = team.rank(); i < leaf_count; i += team.size()) {
      leaves.push_back({i, i * rows, rows, i});
      mine.emplace_back(hidden[static_cast<size_t>(i)]);
    }
    const SharedStop stop(team, StopSignal());
    const LayerWork work{*model, config, team,        stop,
                         timer,  pace,   {&pool, {}}, leaf_count * rows * length,
                         leaves, memory};
    LeafStates states(work, 0, mine, weights);
    for (int stage = 0; stage < stage_of(pair); ++stage) states.advance();
    const std::vector<MethodSettings> all(pair.consumers.size(), settings);
    return ModuleLoss(work, block, states, weights, pair, all)(scales, step);
  }

  int stage_of(const ScalePair& pair) const {
    const auto consumer =
        std::ranges::find(block.spec().linears, pair.consumers.front(), &Linear::name);
    return block.spec().taps[static_cast<size_t>(consumer->tap)].stage;
  }

  /// |change of the residual stream|^2 of a leaf behind the module.
  double by_hand(const ScalePair& pair, const at::Tensor& scale, const at::Tensor& leaf) {
    BlockWeights rounded = weights;
    for (const auto& name : pair.consumers) {
      at::Tensor& weight = rounded.at(name + ".weight");
      weight = rounded_behind(weight, scale, settings, {&pool, {}});
    }
    const int first = stage_of(pair);
    State dense = block.begin(leaf, weights);
    for (int stage = 0; stage < first; ++stage)
      dense = block.advance(std::move(dense), stage, weights);
    State changed = dense;
    for (int stage = first; stage < first + 2; ++stage) {
      dense = block.advance(std::move(dense), stage, weights);
      changed = block.advance(std::move(changed), stage, rounded);
    }
    const at::Tensor difference = (changed.at("hidden") - dense.at("hidden")).to(at::kDouble);
    return difference.square().sum().item<double>();
  }

  ThreadPool pool{2, kernels::use_one_library_thread};
  std::unique_ptr<Model> model =
      open_model(fs::path(SELFCAL_TEST_DATA) / "models" / GetParam(), "auto", {&pool, {}});
  const Block& block = model->block(0);
  const BlockWeights weights = model->read_block(0);
  RunConfig config;
  PhaseTimer timer;
  SolvePace pace;
  const Communicator world = Communicator::world();
  MethodSettings settings;
  std::vector<at::Tensor> hidden;
};

TEST_P(ModuleLosses, AreTheChangesOfTheResidualStream) {
  if (model->shape().compute_dtype != at::kFloat) GTEST_SKIP() << "the stream is rounded";
  int modules = 0;
  for (const auto& pair : block.spec().scale_pairs) {
    if (pair.inspected == pair.consumers.front()) continue;
    ++modules;
    const int64_t columns = weights.at(pair.consumers.front() + ".weight").size(1);
    const at::Tensor scales = at::exp2(at::randn({3, columns}));
    const at::Tensor found = losses(world, pair, scales, 1),
                     sampled = losses(world, pair, scales, 3);
    for (int64_t i = 0; i < 3; ++i) {
      double all = 0, some = 0;
      for (int64_t leaf = 0; leaf < leaf_count; ++leaf) {
        const double loss = by_hand(pair, scales[i], hidden[static_cast<size_t>(leaf)]);
        all += loss;
        if (leaf == 0 || leaf == 4) some += loss;  // one of 0, 1, 2 and one of 3, 4
      }
      EXPECT_NEAR(found[i].item<double>() / all, 1, 1e-3) << pair.inspected;
      EXPECT_NEAR(sampled[i].item<double>() / some, 1, 1e-3) << pair.inspected;
    }
  }
  EXPECT_EQ(modules, 2);
}

TEST_P(ModuleLosses, HaveTheSameBitsOnAnyRanks) {
  const Communicator alone = world.split(world.rank());
  for (const auto& pair : block.spec().scale_pairs) {
    if (pair.inspected == pair.consumers.front()) continue;
    const int64_t columns = weights.at(pair.consumers.front() + ".weight").size(1);
    const at::Tensor scales = at::exp2(at::randn({4, columns}));
    for (const int64_t step : {1, 3}) {
      const at::Tensor one = losses(alone, pair, scales, step);
      EXPECT_TRUE(one.gt(0).all().item<bool>());
      EXPECT_TRUE(at::equal(losses(world, pair, scales, step), one));
      EXPECT_TRUE(at::equal(losses(world, pair, scales, step, LeafMemory::recompute), one));
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Models, ModuleLosses, testing::Values("llama3", "tied-bf16"),
                         [](const auto& name) {
                           std::string text = name.param;
                           std::ranges::replace(text, '-', '_');
                           return text;
                         });

}  // namespace
}  // namespace selfcal
