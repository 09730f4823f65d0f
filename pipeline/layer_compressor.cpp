#include "pipeline/layer_compressor.hpp"

#include <ATen/ATen.h>

#include <algorithm>

#include "comm/agreement.hpp"
#include "pipeline/block_scales.hpp"
#include "pipeline/leaf_states.hpp"
#include "pipeline/team_solve.hpp"

namespace selfcal {
namespace {

void honour_stop(const LayerWork& work) {
  if (work.between_stages) work.between_stages();
  stop_together(work.team, work.stop);
}

using Problems = std::map<int, std::vector<LinearProblem>>;  // by tap

/// The layers of a stage that are not skipped, with the weights that they have in `weights`.
Problems problems_of(const LayerWork& work, int64_t layer, int stage, const BlockWeights& weights) {
  const std::string prefix = work.model.block_prefix(layer);
  Problems problems;
  for (const auto& linear : work.model.block(layer).spec().linears) {
    if (linear.stage != stage) continue;
    const std::string name = prefix + linear.name + ".weight";
    if (auto settings = settings_for(work.config, name)) {
      if (settings->sparsity.by_outliers)
        settings->sparsity = {work.block_sparsity[static_cast<size_t>(layer)], {}};
      problems[linear.tap].push_back({name, weights.at(linear.name + ".weight"), *settings});
    }
  }
  return problems;
}

BlockNeeds needs_of(const Model& model, const RunConfig& config, int64_t layer) {
  BlockNeeds needs;
  for (const auto& linear : model.block(layer).spec().linears)
    if (const auto settings =
            settings_for(config, model.block_prefix(layer) + linear.name + ".weight"))
      needs[linear.tap].add(*settings);
  return needs;
}

/// Of the inputs of a block whose scales are folded in: what its layers are solved with.
std::map<int, TapStatistics> statistics_behind(const ScaledBlock& scales) {
  std::map<int, TapStatistics> statistics;
  for (const auto& [tap, hessian] : scales.hessians)
    statistics[tap] = {hessian, hessian.diagonal().contiguous(), {}};
  return statistics;
}

void keep_changed(const ScaledBlock& scales, const std::string& prefix, const BlockWeights& weights,
                  CompressedBlock& compressed) {
  for (const auto& name : scales.rewritten)
    if (!compressed.linears.contains(prefix + name))
      compressed.changed.emplace(prefix + name, weights.at(name));
}

}  // namespace

void forward_leaves(const Block& block, const BlockWeights& weights,
                    std::vector<at::Tensor>& hidden) {
  for (auto& leaf : hidden) leaf = forward(block, leaf, weights);
}

CompressedBlock compress_layer(const LayerWork& work, int64_t layer, BlockWeights weights,
                               std::vector<at::Tensor>& hidden) {
  const Block& block = work.model.block(layer);
  const BlockSpec& spec = block.spec();
  const std::string prefix = work.model.block_prefix(layer);
  const bool dense = work.config.propagation == Propagation::dense;
  // True-sequential: a stage's outputs come from its compressed weights, so later stages see what
  // will really be there.
  const bool replace_at_once = !dense && work.config.true_sequential;
  const ScaledBlock scales = scale_block(work, layer, weights, hidden,
                                         replace_at_once ? Measured::scaled : Measured::every);
  const BlockWeights scaled = weights;
  const BlockNeeds needs = needs_of(work.model, work.config, layer);
  auto statistics = statistics_behind(scales);  // layers of several stages may read one tap
  const bool scaled_with_statistics = !replace_at_once && !scales.rewritten.empty();

  CompressedBlock compressed;
  std::optional<LeafStates> states;
  if (!scaled_with_statistics) states.emplace(work, block, hidden, weights);
  for (int stage = 0; stage < spec.stages; ++stage) {
    honour_stop(work);
    for (const auto& [tap, group] : problems_of(work, layer, stage, scaled)) {
      if (!statistics.contains(tap))
        statistics[tap] =
            measure_tap(work, *states, spec.taps.at(static_cast<size_t>(tap)), needs.at(tap));
      for (auto& [name, linear] :
           solve_together(work.team, group, statistics.at(tap), work.timer, work.context)) {
        if (replace_at_once) weights.at(name.substr(prefix.size())) = linear.weight;
        compressed.linears.emplace(name, std::move(linear));
      }
    }
    if (states) states->advance(stage);
    std::erase_if(statistics, [&](const auto& item) {
      return std::ranges::none_of(spec.linears, [&](const Linear& linear) {
        return linear.tap == item.first && linear.stage > stage;
      });
    });
  }
  keep_changed(scales, prefix, scaled, compressed);

  if (dense && scaled_with_statistics) {
    hidden = scales.outputs;
  } else if (replace_at_once || dense) {
    hidden = states->finish();
  } else {
    // The published two-pass loop: statistics of the dense block, then its outputs once compressed.
    weights = scaled;
    for (const auto& [name, linear] : compressed.linears)
      weights.at(name.substr(prefix.size())) = linear.weight;
    const auto scope = work.timer.measure(Phase::forward);
    forward_leaves(block, place(weights, work.context.device), hidden);
  }
  return compressed;
}

std::optional<BlockNeeds> shared_needs(const Model& model, const RunConfig& config, int64_t layer) {
  auto needs = scale_needs(model, config, layer);
  return needs && needs->empty() ? needs_of(model, config, layer) : needs;
}

BlockStatistics measure_block(const LayerWork& work, int64_t layer, const BlockWeights& weights,
                              const BlockNeeds& needs, std::vector<at::Tensor>& hidden) {
  const Block& block = work.model.block(layer);
  const BlockSpec& spec = block.spec();
  BlockStatistics statistics;
  LeafStates states(work, block, hidden, weights);
  for (int stage = 0; stage < spec.stages; ++stage) {
    honour_stop(work);
    for (const auto& linear : spec.linears)
      if (linear.stage == stage && needs.contains(linear.tap) &&
          !statistics.taps.contains(linear.tap))
        statistics.taps[linear.tap] = measure_tap(
            work, states, spec.taps.at(static_cast<size_t>(linear.tap)), needs.at(linear.tap));
    states.advance(stage);
  }
  hidden = states.finish();
  return statistics;
}

void expect_factors(const LayerWork& work, int64_t layer, const BlockWeights& weights,
                    BlockStatistics& statistics) {
  for (int stage = 0; stage < work.model.block(layer).spec().stages; ++stage)
    for (const auto& [tap, group] : problems_of(work, layer, stage, weights))
      for (const auto& settings : factors_of(group)) statistics.factors[tap].expect(settings);
}

CompressedBlock compress_measured(const LayerWork& work, int64_t layer, const BlockWeights& weights,
                                  BlockStatistics& statistics) {
  CompressedBlock compressed;
  BlockWeights scaled = weights;
  const ScaledBlock scales = scale_measured(work, layer, scaled, statistics.taps);
  const auto behind = statistics_behind(scales);
  for (int stage = 0; stage < work.model.block(layer).spec().stages; ++stage) {
    honour_stop(work);
    for (const auto& [tap, group] : problems_of(work, layer, stage, scaled))
      compressed.linears.merge(solve_together(work.team, group,
                                              (behind.empty() ? statistics.taps : behind).at(tap),
                                              work.timer, work.context, &statistics.factors[tap]));
  }
  keep_changed(scales, work.model.block_prefix(layer), scaled, compressed);
  return compressed;
}

}  // namespace selfcal
