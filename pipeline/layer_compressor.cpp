#include "pipeline/layer_compressor.hpp"

#include <ATen/ATen.h>

#include <algorithm>
#include <functional>

#include "comm/agreement.hpp"
#include "pipeline/team_solve.hpp"
#include "stages/calibrate/hessian.hpp"

namespace selfcal {
namespace {

/// The states of this rank's leaves as the stages advance.
class LeafStates {
 public:
  LeafStates(const LayerWork& work, const Block& block, const std::vector<at::Tensor>& hidden,
             const BlockWeights& weights)
      : work_(work), block_(block), hidden_(hidden), weights_(weights) {
    if (work.memory == LeafMemory::recompute) return;
    const auto scope = work.timer.measure(Phase::forward);
    for (const auto& leaf : hidden_) states_.push_back(block_.begin(leaf, weights_));
  }

  /// Calls visit(tap) for every leaf, in order.
  void for_each(const std::string& tap, const std::function<void(const at::Tensor&)>& visit) const {
    for (size_t leaf = 0; leaf < hidden_.size(); ++leaf) {
      if (work_.memory == LeafMemory::keep)
        visit(states_[leaf].at(tap));
      else
        visit(computed_again(leaf).at(tap));
    }
  }

  /// Through the linear layers of `stage`, with the weights as they are now.
  void advance(int stage) {
    const auto scope = work_.timer.measure(Phase::forward);
    if (work_.memory == LeafMemory::keep)
      for (auto& state : states_) state = block_.advance(std::move(state), stage, weights_);
    ++stage_;
  }

  std::vector<at::Tensor> finish() {
    const auto scope = work_.timer.measure(Phase::forward);
    std::vector<at::Tensor> outputs;
    for (size_t leaf = 0; leaf < hidden_.size(); ++leaf)
      outputs.push_back(block_.finish(work_.memory == LeafMemory::keep ? std::move(states_[leaf])
                                                                       : computed_again(leaf)));
    return outputs;
  }

 private:
  State computed_again(size_t leaf) const {
    const auto scope = work_.timer.measure(Phase::forward);
    State state = block_.begin(hidden_[leaf], weights_);
    for (int stage = 0; stage < stage_; ++stage)
      state = block_.advance(std::move(state), stage, weights_);
    return state;
  }

  const LayerWork& work_;
  const Block& block_;
  const std::vector<at::Tensor>& hidden_;
  const BlockWeights& weights_;
  std::vector<State> states_;
  int stage_ = 0;  // stages that the states have been through
};

/// H = X^T X / tokens over all leaves of the team; every rank gets it. Collective.
at::Tensor measure_hessian(const LayerWork& work, const LeafStates& states, const Tap& tap) {
  const auto scope = work.timer.measure(Phase::statistics);
  HessianAccumulator accumulator(tap.columns, work.context);
  agree(work.team,
        [&] { states.for_each(tap.name, [&](const at::Tensor& x) { accumulator.observe(x); }); });
  {
    const auto reduce = work.timer.measure(Phase::reduce);
    work.team.all_reduce(accumulator.exponents(), ReduceOp::max);
  }
  states.for_each(tap.name, [&](const at::Tensor& x) { accumulator.add(x); });
  {
    const auto reduce = work.timer.measure(Phase::reduce);
    work.team.all_reduce(accumulator.sums(), ReduceOp::sum);
  }
  return accumulator.finish(work.tokens);
}

void honour_stop(const LayerWork& work) {
  if (any(work.team, work.stop.requested())) throw Stopped();
}

}  // namespace

void forward_leaves(const Block& block, const BlockWeights& weights,
                    std::vector<at::Tensor>& hidden) {
  for (auto& leaf : hidden) leaf = forward(block, leaf, weights);
}

std::map<std::string, CompressedLinear> compress_layer(const LayerWork& work, int64_t layer,
                                                       BlockWeights weights,
                                                       std::vector<at::Tensor>& hidden) {
  const Block& block = work.model.block(layer);
  const BlockSpec& spec = block.spec();
  const std::string prefix = work.model.block_prefix(layer);
  const bool dense = work.config.propagation == Propagation::dense;
  // True-sequential: a stage's outputs come from its compressed weights, so later stages see what
  // will really be there.
  const bool replace_at_once = !dense && work.config.true_sequential;
  const BlockWeights original = weights;

  std::map<std::string, CompressedLinear> compressed;
  LeafStates states(work, block, hidden, weights);
  std::map<int, at::Tensor> hessians;  // by tap: layers of several stages may read one
  for (int stage = 0; stage < spec.stages; ++stage) {
    honour_stop(work);
    std::map<int, std::vector<LinearProblem>> problems;  // by tap
    for (const auto& linear : spec.linears) {
      if (linear.stage != stage) continue;
      const std::string name = prefix + linear.name + ".weight";
      if (const auto settings = settings_for(work.config, name))
        problems[linear.tap].push_back({name, original.at(linear.name + ".weight"), *settings});
    }
    for (const auto& [tap, group] : problems) {
      if (!hessians.contains(tap))
        hessians[tap] = measure_hessian(work, states, spec.taps.at(static_cast<size_t>(tap)));
      for (auto& [name, linear] :
           solve_together(work.team, group, hessians.at(tap), work.timer, work.context)) {
        if (replace_at_once) weights.at(name.substr(prefix.size())) = linear.weight;
        compressed.emplace(name, std::move(linear));
      }
    }
    states.advance(stage);
    std::erase_if(hessians, [&](const auto& item) {
      return std::ranges::none_of(spec.linears, [&](const Linear& linear) {
        return linear.tap == item.first && linear.stage > stage;
      });
    });
  }

  if (dense || replace_at_once) {
    hidden = states.finish();
  } else {  // the published two-pass loop: statistics of the dense block, then its outputs once
            // compressed
    for (const auto& [name, linear] : compressed)
      weights.at(name.substr(prefix.size())) = linear.weight;
    const auto scope = work.timer.measure(Phase::forward);
    forward_leaves(block, weights, hidden);
  }
  return compressed;
}

}  // namespace selfcal
