#include "pipeline/leaf_states.hpp"

#include <ATen/ATen.h>

#include "pipeline/tensor_message.hpp"
#include "pipeline/timed_agreement.hpp"
#include "stages/calibrate/hessian.hpp"
#include "stages/calibrate/magnitudes.hpp"

namespace selfcal {
namespace {

/// Over the team: by NCCL where the sums lie on GPUs and it is there, else through host memory.
void add_up(const Communicator& team, HessianAccumulator& accumulator) {
  const auto on_device = accumulator.device_sums();
  if (on_device.empty() || !team.moves_device_memory())
    return team.all_reduce(accumulator.sums(), ReduceOp::sum);
  for (const at::Tensor& part : on_device)
    team.all_reduce(device_bytes_of(part), Element::int64, ReduceOp::sum).wait();
}

}  // namespace

const BlockWeights& PlacedWeights::current() {
  for (const auto& [name, tensor] : source_) {
    at::Tensor& taken = taken_[name];
    if (taken.is_same(tensor)) continue;
    taken = tensor;
    placed_[name] = tensor.to(device_.memory);
  }
  return placed_;
}

LeafStates::LeafStates(const LayerWork& work, const Block& block,
                       const std::vector<at::Tensor>& hidden, const BlockWeights& weights)
    : work_(work), block_(block), hidden_(hidden), weights_(weights, work.context.device) {
  if (work.memory == LeafMemory::recompute) return;
  const auto scope = work.timer.measure(Phase::forward);
  for (const auto& leaf : hidden_) states_.push_back(block_.begin(leaf, weights_.current()));
}

void LeafStates::for_each(const std::string& tap,
                          const std::function<void(const at::Tensor&)>& visit) const {
  for (size_t leaf = 0; leaf < hidden_.size(); ++leaf)
    look_at(leaf, [&](const State& state) { visit(state.at(tap)); });
}

void LeafStates::look_at(size_t leaf, const std::function<void(const State&)>& visit) const {
  if (work_.memory == LeafMemory::keep)
    visit(states_[leaf]);
  else
    visit(computed_again(leaf));
}

void LeafStates::advance(int stage) {
  const auto scope = work_.timer.measure(Phase::forward);
  if (work_.memory == LeafMemory::keep)
    for (auto& state : states_) state = block_.advance(std::move(state), stage, weights_.current());
  ++stage_;
}

std::vector<at::Tensor> LeafStates::finish() {
  const auto scope = work_.timer.measure(Phase::forward);
  std::vector<at::Tensor> outputs;
  for (size_t leaf = 0; leaf < hidden_.size(); ++leaf)
    outputs.push_back(block_.finish(work_.memory == LeafMemory::keep ? std::move(states_[leaf])
                                                                     : computed_again(leaf)));
  return outputs;
}

State LeafStates::computed_again(size_t leaf) const {
  const auto scope = work_.timer.measure(Phase::forward);
  State state = block_.begin(hidden_[leaf], weights_.current());
  for (int stage = 0; stage < stage_; ++stage)
    state = block_.advance(std::move(state), stage, weights_.current());
  return state;
}

TapStatistics measure_tap(const LayerWork& work, const LeafStates& states, const Tap& tap,
                          bool with_magnitude) {
  const auto scope = work.timer.measure(Phase::statistics);
  HessianAccumulator accumulator(tap.columns, work.context);
  agree(work.team, work.timer,
        [&] { states.for_each(tap.name, [&](const at::Tensor& x) { accumulator.observe(x); }); });
  {
    const auto reduce = work.timer.measure(Phase::reduce);
    work.team.all_reduce(accumulator.exponents(), ReduceOp::max);
  }
  MagnitudeAccumulator magnitudes(accumulator.exponents(), work.context);
  agree(work.team, work.timer, [&] {
    states.for_each(tap.name, [&](const at::Tensor& x) {
      accumulator.add(x);
      if (with_magnitude) magnitudes.add(x.to(at::kCPU));
    });
  });
  {
    const auto reduce = work.timer.measure(Phase::reduce);
    add_up(work.team, accumulator);
    if (with_magnitude) work.team.all_reduce(magnitudes.sums(), ReduceOp::sum);
  }
  TapStatistics statistics;
  statistics.hessian = accumulator.finish(work.tokens);
  if (with_magnitude) statistics.magnitude = magnitudes.finish(work.tokens);
  return statistics;
}

}  // namespace selfcal
