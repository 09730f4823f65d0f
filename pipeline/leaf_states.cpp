#include "pipeline/leaf_states.hpp"

#include <ATen/ATen.h>

#include <algorithm>

#include "pipeline/tensor_message.hpp"
#include "pipeline/timed_agreement.hpp"
#include "stages/calibrate/column_norms.hpp"
#include "stages/calibrate/hessian.hpp"
#include "stages/calibrate/magnitudes.hpp"

namespace selfcal {
namespace {

/// Over the team, where it has several ranks: by NCCL where the sums lie on GPUs and it is there,
/// else through host memory.
void add_up(const Communicator& team, HessianAccumulator& accumulator) {
  if (team.size() == 1) return;
  const auto on_device = accumulator.device_sums();
  if (on_device.empty() || !team.moves_device_memory())
    return team.all_reduce(accumulator.sums(), ReduceOp::sum);
  for (const at::Tensor& part : on_device)
    team.all_reduce(device_bytes_of(part), Element::int64, ReduceOp::sum).wait();
}

void reduce(const LayerWork& work, const std::function<void()>& collectives) {
  const auto scope = work.timer.measure(Phase::reduce);
  collectives();
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

void LeafStates::for_each(int index, const std::function<void(const at::Tensor&)>& visit) const {
  const std::string place = input_name(work_.model, layer_, index);
  for (size_t leaf = 0; leaf < hidden_.size(); ++leaf)
    look_at(leaf, [&](const State& state) {
      at_place(place, [&] { visit(state.at(tap(index).name)); });
    });
}

void LeafStates::look_at(size_t leaf, const std::function<void(const State&)>& visit) const {
  if (work_.memory == LeafMemory::keep)
    visit(kept(leaf));
  else
    visit(computed_again(leaf));
}

void LeafStates::finish(HiddenStates& leaves) {
  agree(work_.team, work_.timer, [&] {
    const auto scope = work_.timer.measure(Phase::forward);
    for (size_t leaf = 0; leaf < leaves.size(); ++leaf) {
      leaves[leaf] = block_.finish(work_.memory == LeafMemory::keep ? std::move(kept(leaf))
                                                                    : computed_again(leaf));
      between_leaves();
    }
  });
}

State& LeafStates::kept(size_t leaf) const {
  while (kept_.size() <= leaf) {
    const auto scope = work_.timer.measure(Phase::forward);
    kept_.push_back({block_.begin(hidden_[kept_.size()].get(), weights_.current())});
    between_leaves();
  }
  Kept& kept = kept_[leaf];
  if (kept.stage < stage_) {
    const auto scope = work_.timer.measure(Phase::forward);
    const BlockWeights& current = weights_.current();
    for (; kept.stage < stage_; ++kept.stage)
      kept.state = block_.advance(std::move(kept.state), kept.stage, current);
    between_leaves();
  }
  return kept.state;
}

void LeafStates::between_leaves() const {
  if (work_.between_leaves) work_.between_leaves();
}

State LeafStates::computed_again(size_t leaf) const {
  const auto scope = work_.timer.measure(Phase::forward);
  const BlockWeights& current = weights_.current();
  State state = block_.begin(hidden_[leaf].get(), current);
  for (int stage = 0; stage < stage_; ++stage)
    state = block_.advance(std::move(state), stage, current);
  return state;
}

std::string input_name(const Model& model, int64_t layer, int tap) {
  const auto& linears = model.block(layer).spec().linears;
  const auto reader = std::ranges::find(linears, tap, &Linear::tap);
  return "input of " + model.block_prefix(layer) + (reader == linears.end() ? "?" : reader->name);
}

TapStatistics measure_tap(const LayerWork& work, const LeafStates& states, int tap,
                          TapNeeds needs) {
  const int64_t columns = states.tap(tap).columns;
  const auto scope = work.timer.measure(Phase::statistics);
  TapStatistics statistics;
  if (needs.products || needs.magnitude) {
    HessianAccumulator accumulator(columns, work.context);
    agree(work.team, work.timer,
          [&] { states.for_each(tap, [&](const at::Tensor& x) { accumulator.observe(x); }); });
    reduce(work, [&] { work.team.all_reduce(accumulator.exponents(), ReduceOp::max); });
    MagnitudeAccumulator magnitudes(accumulator.exponents(), work.context);
    agree(work.team, work.timer, [&] {
      states.for_each(tap, [&](const at::Tensor& x) {
        accumulator.add(x);
        if (needs.magnitude) magnitudes.add(x.to(at::kCPU));
      });
    });
    reduce(work, [&] {
      add_up(work.team, accumulator);
      if (needs.magnitude) work.team.all_reduce(magnitudes.sums(), ReduceOp::sum);
    });
    statistics.hessian = accumulator.finish(work.tokens);
    if (needs.magnitude) statistics.magnitude = magnitudes.finish(work.tokens);
  }
  if (needs.norms) {
    ColumnNorms norms(columns, work.context);
    agree(work.team, work.timer,
          [&] { states.for_each(tap, [&](const at::Tensor& x) { norms.add(x.to(at::kCPU)); }); });
    reduce(work, [&] { work.team.all_reduce(norms.exponents(), ReduceOp::max); });
    norms.count();
    reduce(work, [&] { work.team.all_reduce(norms.sums(), ReduceOp::sum); });
    statistics.diagonal = norms.finish(work.tokens).square_();
  }
  return statistics;
}

}  // namespace selfcal
