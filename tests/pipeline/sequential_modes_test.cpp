// What a stage's statistics are measured behind: with true_sequential the compressed earlier stages
// of its block, with per_block the compressed earlier blocks, with dense propagation the model as
// it was. Against a plain recomputation: blocks run forward, X^T X in float64, one solve a layer.
#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <algorithm>

#include "pipeline/layer_compressor.hpp"

namespace selfcal {
namespace {

constexpr int64_t leaf_count = 5, rows = 2, length = 24;

enum class Mode { true_sequential, per_block, dense };

/// A model compressed in one mode: what went into each block, and what came of it.
struct Outcome {
  std::vector<HiddenStates> hidden;  // by block, then leaf; the last are the outputs
  std::vector<CompressedBlock> blocks;
};

class SequentialModes : public testing::TestWithParam<const char*> {
 protected:
  SequentialModes() {
    at::manual_seed(3);
    for (int64_t i = 0; i < leaf_count; ++i)
      embedded.push_back(at::randn({rows, length, model->shape().hidden}));
    config.method.bits = 3;
    config.method.group_size = -1;
    config.method.scale_dtype = at::kFloat;
  }
  static void SetUpTestSuite() { kernels::use_one_library_thread(); }

  Outcome compress(Mode mode, const Communicator& team) {
    config.propagation = mode == Mode::dense ? Propagation::dense : Propagation::sequential;
    config.true_sequential = mode == Mode::true_sequential;
    std::vector<Leaf> leaves;
    HiddenStates mine;
    for (int64_t i = team.rank(); i < leaf_count; i += team.size()) {
      leaves.push_back({i, i * rows, rows, i});
      mine.emplace_back(embedded[static_cast<size_t>(i)]);
    }
    const SharedStop stop(team, StopSignal());
    const LayerWork work{
        *model, config,          team, stop, timer, pace, {&pool, {}}, leaf_count * rows * length,
        leaves, LeafMemory::keep};
    Outcome outcome;
    for (int64_t layer = 0; layer < model->shape().layers; ++layer) {
      outcome.hidden.push_back(mine);
      outcome.blocks.push_back(compress_layer(work, layer, model->read_block(layer), mine));
    }
    outcome.hidden.push_back(mine);
    return outcome;
  }

  /// The block's weights with those of the stages before `stage` compressed.
  BlockWeights behind(const Outcome& outcome, int64_t layer, int stage) {
    BlockWeights weights = model->read_block(layer);
    for (const auto& linear : model->block(layer).spec().linears)
      if (linear.stage < stage)
        weights.at(linear.name + ".weight") = weight_of(outcome, layer, linear);
    return weights;
  }

  const at::Tensor& weight_of(const Outcome& outcome, int64_t layer, const Linear& linear) const {
    return outcome.blocks[static_cast<size_t>(layer)]
        .linears.at(model->block_prefix(layer) + linear.name + ".weight")
        .weight;
  }

  /// Whether nothing that is compressed lies before the tap within its block.
  static bool reads_block_input(const Tap& tap) { return tap.stage == 0; }

  /// X^T X / tokens of what a layer reads in a block with these weights.
  at::Tensor hessian_of(const Linear& linear, int64_t layer, const HiddenStates& hidden,
                        const BlockWeights& weights) {
    const Block& block = model->block(layer);
    at::Tensor sum = at::zeros({linear.columns, linear.columns}, at::kDouble);
    for (const HiddenState& leaf : hidden) {
      State state = block.begin(leaf.get(), weights);
      for (int stage = 0; stage < linear.stage; ++stage)
        state = block.advance(std::move(state), stage, weights);
      const at::Tensor x =
          state.at(block.spec().taps[static_cast<size_t>(linear.tap)].name).to(at::kDouble);
      sum += x.t().mm(x);
    }
    return (sum / (leaf_count * rows * length)).to(at::kFloat);
  }

  at::Tensor solved(const Linear& linear, int64_t layer, const at::Tensor& hessian) {
    const std::string name = linear.name + ".weight";
    const auto settings = settings_for(config, model->block_prefix(layer) + name);
    const auto method = make_method(*settings, {&pool, {}});
    return method
        ->solve(model->read_block(layer).at(name), hessian, method->factorise(hessian), at::kFloat)
        .linear.weight;
  }

  /// Share of the entries that lie within a hundredth of the rounding's error.
  static double share_equal(const at::Tensor& a, const at::Tensor& b, const at::Tensor& dense) {
    const double near = 0.01 * (a - dense).abs().mean().item<double>();
    return ((a - b).abs() < near).to(at::kDouble).mean().item<double>();
  }

  ThreadPool pool{2, kernels::use_one_library_thread};
  std::unique_ptr<Model> model =
      open_model(fs::path(SELFCAL_TEST_DATA) / "models" / GetParam(), "float32", {&pool, {}});
  RunConfig config;
  PhaseTimer timer;
  SolvePace pace;
  const Communicator world = Communicator::world();
  std::vector<at::Tensor> embedded;
};

TEST_P(SequentialModes, EachLayerIsSolvedBehindWhatItsModeSays) {
  const Communicator alone = world.split(world.rank());
  for (const Mode mode : {Mode::true_sequential, Mode::per_block, Mode::dense}) {
    const Outcome outcome = compress(mode, alone);
    for (int64_t layer = 0; layer < model->shape().layers; ++layer) {
      const Block& block = model->block(layer);
      const HiddenStates& hidden = outcome.hidden[static_cast<size_t>(layer)];
      for (const auto& linear : block.spec().linears) {
        const BlockWeights weights =
            behind(outcome, layer, mode == Mode::true_sequential ? linear.stage : 0);
        const at::Tensor expected =
            solved(linear, layer, hessian_of(linear, layer, hidden, weights));
        EXPECT_GE(share_equal(weight_of(outcome, layer, linear), expected,
                              model->read_block(layer).at(linear.name + ".weight")),
                  0.99)
            << int(mode) << " block " << layer << " " << linear.name;
      }
      const BlockWeights left =
          behind(outcome, layer, mode == Mode::dense ? 0 : block.spec().stages);
      for (size_t leaf = 0; leaf < hidden.size(); ++leaf)
        EXPECT_TRUE(at::equal(forward(block, hidden[leaf].get(), left),
                              outcome.hidden[static_cast<size_t>(layer) + 1][leaf].get()));
    }
  }
}

TEST_P(SequentialModes, DifferWhereTheyShould) {
  const Communicator alone = world.split(world.rank());
  const Outcome stages = compress(Mode::true_sequential, alone),
                blocks = compress(Mode::per_block, alone), dense = compress(Mode::dense, alone);
  for (int64_t layer = 0; layer < model->shape().layers; ++layer)
    for (const auto& linear : model->block(layer).spec().linears) {
      const at::Tensor &by_stage = weight_of(stages, layer, linear),
                       &by_block = weight_of(blocks, layer, linear),
                       &of_dense = weight_of(dense, layer, linear);
      const auto& tap = model->block(layer).spec().taps[static_cast<size_t>(linear.tap)];
      SCOPED_TRACE(linear.name);
      const at::Tensor weight = model->read_block(layer).at(linear.name + ".weight");
      // Further apart than a solve and its recomputation are.
      const auto expect_apart = [&](const at::Tensor& a, const at::Tensor& b, bool apart) {
        EXPECT_EQ(at::equal(a, b), !apart);
        EXPECT_EQ(share_equal(a, b, weight) < 0.98, apart);
      };
      expect_apart(by_block, of_dense, layer > 0);
      expect_apart(by_stage, by_block, layer > 0 || !reads_block_input(tap));
      expect_apart(by_stage, of_dense, layer > 0 || !reads_block_input(tap));
    }
}

TEST_P(SequentialModes, HaveTheSameBitsOnAnyRanks) {
  const Communicator alone = world.split(world.rank());
  for (const Mode mode : {Mode::true_sequential, Mode::per_block, Mode::dense}) {
    const Outcome one = compress(mode, alone), all = compress(mode, world);
    for (size_t layer = 0; layer < one.blocks.size(); ++layer)
      for (const auto& [name, linear] : one.blocks[layer].linears)
        EXPECT_TRUE(at::equal(all.blocks[layer].linears.at(name).weight, linear.weight)) << name;
  }
}

INSTANTIATE_TEST_SUITE_P(Models, SequentialModes, testing::Values("llama3", "phi"));

}  // namespace
}  // namespace selfcal
