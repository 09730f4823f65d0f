#include "pipeline/layer_compressor.hpp"

#include <ATen/ATen.h>

#include <algorithm>

#include "pipeline/block_scales.hpp"
#include "pipeline/leaf_states.hpp"
#include "pipeline/team_solve.hpp"
#include "pipeline/timed_agreement.hpp"

namespace selfcal {
namespace {

void honour_stop(const LayerWork& work) {
  if (work.between_stages) work.between_stages();
  stop_together(work.team, work.stop);
}

/// The layers of a stage, or of all, that are not skipped, with the weights that they have in
/// `weights`.
TapProblems problems_of(const LayerWork& work, int64_t layer, std::optional<int> stage,
                        const BlockWeights& weights) {
  const std::string prefix = work.model.block_prefix(layer);
  TapProblems problems;
  for (const auto& linear : work.model.block(layer).spec().linears) {
    if (stage && linear.stage != *stage) continue;
    const std::string name = prefix + linear.name + ".weight";
    if (auto settings = settings_for(work.config, name)) {
      if (settings->sparsity.by_outliers)
        settings->sparsity = {work.block_sparsity[static_cast<size_t>(layer)], {}};
      problems[linear.tap].push_back({name, weights.at(linear.name + ".weight"), *settings});
    }
  }
  return problems;
}

void expect(const TapProblems& problems, BlockStatistics& statistics) {
  for (const auto& [tap, group] : problems)
    for (const auto& settings : factors_of(group)) statistics.factors[tap].expect(settings);
}

std::map<std::string, CompressedLinear> solve_problems(const LayerWork& work,
                                                       const TapProblems& problems,
                                                       BlockStatistics& statistics) {
  return solve_together({work.team, work.timer, work.pace, work.context}, problems, statistics.taps,
                        statistics.factors, [&work] { honour_stop(work); });
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
                    std::span<HiddenState> hidden) {
  for (auto& leaf : hidden) leaf = forward(block, leaf.get(), weights);
}

CompressedBlock compress_layer(const LayerWork& work, int64_t layer, BlockWeights weights,
                               HiddenStates& hidden) {
  const Block& block = work.model.block(layer);
  const BlockSpec& spec = block.spec();
  const std::string prefix = work.model.block_prefix(layer);
  const bool dense = work.config.propagation == Propagation::dense;
  // True-sequential: a stage's outputs come from its compressed weights, so later stages see what
  // will really be there.
  const bool replace_at_once = !dense && work.config.true_sequential;
  const ScaledBlock scales = scale_block(work, layer, weights, hidden,
                                         replace_at_once ? Measured::scaled : Measured::every);
  BlockWeights scaled = weights;
  const BlockNeeds needs = needs_of(work.model, work.config, layer);
  // Layers of several stages may read one tap.
  BlockStatistics statistics{statistics_behind(scales), {}};
  for (int stage = 0; replace_at_once && stage < spec.stages; ++stage)
    expect(problems_of(work, layer, stage, scaled), statistics);
  const bool scaled_with_statistics = !replace_at_once && !scales.rewritten.empty();

  CompressedBlock compressed;
  std::optional<LeafStates> states;
  if (!scaled_with_statistics) states.emplace(work, layer, hidden, weights);
  for (int stage = 0; stage < spec.stages; ++stage) {
    honour_stop(work);
    if (stage + 1 == spec.stages && work.before_last_stage) work.before_last_stage();
    const TapProblems problems = problems_of(work, layer, stage, scaled);
    for (const auto& [tap, group] : problems)
      if (!statistics.taps.contains(tap))
        statistics.taps[tap] = measure_tap(work, *states, tap, needs.at(tap));
    if (replace_at_once) {
      for (auto& [name, linear] : solve_problems(work, problems, statistics)) {
        weights.at(name.substr(prefix.size())) = linear.weight;
        scaled.erase(name.substr(prefix.size()));  // the block is not kept twice
        compressed.linears.emplace(name, std::move(linear));
      }
      std::erase_if(statistics.taps, [&](const auto& item) {
        return std::ranges::none_of(spec.linears, [&](const Linear& linear) {
          return linear.tap == item.first && linear.stage > stage;
        });
      });
    }
    if (states) states->advance();
  }
  if (dense && scaled_with_statistics)
    hidden = scales.outputs;
  else if (replace_at_once || dense)
    states->finish(hidden);
  states.reset();
  if (!replace_at_once)
    compressed.linears =
        solve_problems(work, problems_of(work, layer, std::nullopt, scaled), statistics);
  keep_changed(scales, prefix, scaled, compressed);

  if (!replace_at_once && !dense) {
    // The published two-pass loop: statistics of the dense block, then its outputs once compressed.
    weights = scaled;
    for (const auto& [name, linear] : compressed.linears)
      weights.at(name.substr(prefix.size())) = linear.weight;
    agree(work.team, work.timer, [&] {
      const auto scope = work.timer.measure(Phase::forward);
      forward_leaves(block, place(weights, work.context.device), hidden);
    });
  }
  return compressed;
}

std::optional<BlockNeeds> shared_needs(const Model& model, const RunConfig& config, int64_t layer) {
  auto needs = scale_needs(model, config, layer);
  return needs && needs->empty() ? needs_of(model, config, layer) : needs;
}

BlockStatistics measure_block(const LayerWork& work, int64_t layer, const BlockWeights& weights,
                              const BlockNeeds& needs, HiddenStates& hidden) {
  const Block& block = work.model.block(layer);
  const BlockSpec& spec = block.spec();
  BlockStatistics statistics;
  LeafStates states(work, layer, hidden, weights);
  for (int stage = 0; stage < spec.stages; ++stage) {
    honour_stop(work);
    for (const auto& linear : spec.linears)
      if (linear.stage == stage && needs.contains(linear.tap) &&
          !statistics.taps.contains(linear.tap))
        statistics.taps[linear.tap] = measure_tap(work, states, linear.tap, needs.at(linear.tap));
    states.advance();
  }
  states.finish(hidden);
  return statistics;
}

void expect_factors(const LayerWork& work, int64_t layer, const BlockWeights& weights,
                    BlockStatistics& statistics) {
  // (Factors behind AWQ's scales are the job's own.)
  const auto scales = scale_needs(work.model, work.config, layer);
  if (scales && scales->empty())
    expect(problems_of(work, layer, std::nullopt, weights), statistics);
}

CompressedBlock compress_measured(const LayerWork& work, int64_t layer, const BlockWeights& weights,
                                  BlockStatistics& statistics) {
  honour_stop(work);
  BlockWeights scaled = weights;
  const ScaledBlock scales = scale_measured(work, layer, scaled, statistics.taps);
  BlockStatistics behind{statistics_behind(scales), {}};
  CompressedBlock compressed;
  compressed.linears = solve_problems(work, problems_of(work, layer, std::nullopt, scaled),
                                      behind.taps.empty() ? statistics : behind);
  keep_changed(scales, work.model.block_prefix(layer), scaled, compressed);
  return compressed;
}

}  // namespace selfcal
