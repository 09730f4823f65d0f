#include "pipeline/module_loss.hpp"

#include <ATen/ATen.h>

#include <cmath>
#include <limits>
#include <numeric>

#include "pipeline/timed_agreement.hpp"
#include "stages/calibrate/exact_sums.hpp"
#include "stages/kernels/cpu/tiles.hpp"
#include "stages/solve/awq.hpp"

namespace selfcal {
namespace {

constexpr int64_t largest_leaf_step = 8;

/// One leaf of every run of `step`, each run's at a place of its own: ranks that are dealt leaves
/// in turn then have as many of them as each other.
bool is_sampled(const Leaf& leaf, int64_t step) {
  return leaf.index % step == leaf.index / step % step;
}

/// |a - b|^2 over all entries, in float64 and in an order that only their shape decides.
double squared_distance(const at::Tensor& a, const at::Tensor& b, const kernels::Context& context) {
  constexpr int64_t of_a_task = 1 << 15, side_by_side = 16;
  const int64_t n = a.numel();
  std::vector<double> parts(static_cast<size_t>(kernels::ceil_divide(n, of_a_task)));
  kernels::with_element(a, [&](auto element) {
    const auto* from = a.const_data_ptr<decltype(element)>();
    const auto* other = b.const_data_ptr<decltype(element)>();
    kernels::for_ranges(context, n, of_a_task, [&](int64_t first, int64_t count) {
      double sums[side_by_side] = {};
      for (int64_t i = first; i < first + count; i += side_by_side)
        for (int64_t j = 0; j < std::min(side_by_side, first + count - i); ++j) {
          const double difference = double(float(from[i + j])) - double(float(other[i + j]));
          sums[j] += difference * difference;
        }
      parts[static_cast<size_t>(first / of_a_task)] =
          std::accumulate(sums, sums + side_by_side, 0.0);
    });
  });
  return std::accumulate(parts.begin(), parts.end(), 0.0);
}

}  // namespace

ModuleLoss::ModuleLoss(const LayerWork& work, const Block& block, const LeafStates& states,
                       const BlockWeights& weights, const ScalePair& pair,
                       std::vector<MethodSettings> settings)
    : work_(work),
      block_(block),
      states_(states),
      weights_(weights),
      pair_(pair),
      settings_(std::move(settings)) {}

int64_t ModuleLoss::step() const {
  const auto& set = work_.config.calibration;
  const size_t leaves = cut_leaves(set.sequences, set.length, set.micro_batch).size();
  return std::clamp<int64_t>(static_cast<int64_t>(leaves), 1, largest_leaf_step);
}

BlockWeights ModuleLoss::with_rounded(const at::Tensor& scale) const {
  BlockWeights weights = weights_;
  for (size_t i = 0; i < pair_.consumers.size(); ++i) {
    at::Tensor& weight = weights.at(pair_.consumers[i] + ".weight");
    weight = rounded_behind(weight, scale, settings_[i], work_.context);
  }
  return place(weights, work_.context.device);
}

std::vector<double> ModuleLoss::losses_of_leaf(size_t leaf, const at::Tensor& scales) const {
  std::vector<double> losses;
  states_.look_at(leaf, [&](const State& state) {
    const auto output = [&](const BlockWeights& weights) {
      return block_.output_of(pair_.inspected, state, weights).to(at::kCPU);
    };
    const at::Tensor dense = output(place(weights_, work_.context.device));
    for (int64_t candidate = 0; candidate < scales.size(0); ++candidate) {
      const double loss =
          squared_distance(output(with_rounded(scales[candidate])), dense, work_.context);
      // A candidate whose outputs overflow loses.
      losses.push_back(std::isfinite(loss) ? loss : std::numeric_limits<float>::max());
    }
  });
  return losses;
}

at::Tensor ModuleLoss::operator()(const at::Tensor& scales, int64_t step) const {
  ExactSums losses(scales.size(0));
  agree(work_.team, work_.timer, [&] {
    for (size_t leaf = 0; leaf < work_.leaves.size(); ++leaf)
      if (is_sampled(work_.leaves[leaf], step)) losses.add(losses_of_leaf(leaf, scales));
  });
  {
    const auto reduce = work_.timer.measure(Phase::reduce);
    work_.team.all_reduce(losses.exponents(), ReduceOp::max);
    losses.count();
    work_.team.all_reduce(losses.sums(), ReduceOp::sum);
  }
  at::Tensor all = at::empty({scales.size(0)}, at::kDouble);
  for (int64_t i = 0; i < scales.size(0); ++i) all.mutable_data_ptr<double>()[i] = losses.at(i);
  return all;
}

}  // namespace selfcal
