#include "pipeline/block_scales.hpp"

#include <ATen/ATen.h>

#include <algorithm>
#include <functional>
#include <set>

#include "comm/agreement.hpp"
#include "pipeline/leaf_states.hpp"
#include "pipeline/module_loss.hpp"
#include "pipeline/tensor_exchange.hpp"
#include "stages/solve/awq.hpp"

namespace selfcal {
namespace {

const Linear& find_linear(const BlockSpec& spec, const std::string& name) {
  const auto found = std::ranges::find(spec.linears, name, &Linear::name);
  if (found == spec.linears.end()) fail(ExitCode::internal, "{}: not a linear layer", name);
  return *found;
}

/// The settings of a pair's consumers, in their order, if AWQ has them all and nothing else reads
/// their input; else none.
std::vector<MethodSettings> settings_of(const RunConfig& config, const BlockSpec& spec,
                                        const std::string& prefix, const ScalePair& pair) {
  const int tap = find_linear(spec, pair.consumers.front()).tap;
  for (const auto& linear : spec.linears) {
    const bool consumes = std::ranges::find(pair.consumers, linear.name) != pair.consumers.end();
    if (consumes != (linear.tap == tap)) return {};
  }
  std::vector<MethodSettings> all;
  for (const auto& name : pair.consumers) {
    const auto settings = settings_for(config, prefix + name + ".weight");
    if (!settings || settings->name != MethodName::awq) return {};
    all.push_back(*settings);
  }
  return all;
}

/// Rows of `weight` that this rank looks at: tiles dealt in runs.
std::pair<int64_t, int64_t> share_of(const Communicator& team, int64_t rows) {
  const int64_t tiles = (rows + solve_row_tile - 1) / solve_row_tile;
  const auto start = [&](int64_t rank) {
    return std::min(rows, rank * tiles / team.size() * solve_row_tile);
  };
  return {start(team.rank()), start(team.rank() + 1)};
}

/// Loss of each candidate, float64 [candidates]: summed in row order, whoever had the rows.
at::Tensor losses_together(const LayerWork& work, const at::Tensor& weight,
                           const TapStatistics& statistics, const at::Tensor& scales,
                           const MethodSettings& settings) {
  const auto [first, last] = share_of(work.team, weight.size(0));
  std::map<std::string, at::Tensor> mine;
  agree(work.team, [&, first = first, last = last] {
    mine["losses"] = losses_of_scales(weight.narrow(0, first, last - first), statistics.hessian,
                                      scales, settings, work.context);
  });
  if (work.team.size() == 1) return mine["losses"].sum(0);
  std::vector<at::Tensor> parts;
  for (const auto& tensors : gather_tensors(work.team, mine)) parts.push_back(tensors.at("losses"));
  return at::cat(parts).sum(0);
}

/// A pair that AWQ scales, with the settings of each of its consumers.
struct AwqPair {
  ScalePair pair;
  std::vector<MethodSettings> settings;

  /// Whether other outputs than those of its consumers are compared.
  bool inspects_module() const {
    return settings.front().scale_loss == ScaleLoss::module &&
           pair.inspected != pair.consumers.front();
  }
};

/// `states`: where a module is inspected; `dense`: the weights that they have come through, where
/// the consumers are as in `weights`.
at::Tensor best_scale(const LayerWork& work, const Block& block, const AwqPair& found,
                      const LeafStates* states, const BlockWeights& dense,
                      const TapStatistics& statistics) {
  const auto scope = work.timer.measure(Phase::solve);
  const auto& pair = found.pair;
  const auto& settings = found.settings;
  std::vector<at::Tensor> consumers;
  for (const auto& name : pair.consumers) consumers.push_back(dense.at(name + ".weight"));
  const at::Tensor candidates = candidate_scales(consumers, statistics.magnitude, settings.front());
  if (found.inspects_module()) {
    const ModuleLoss loss(work, block, *states, dense, pair, settings);
    return search_scale(candidates, loss.step(), std::cref(loss));
  }
  return search_scale(candidates, row_step(consumers), [&](const at::Tensor& scales, int64_t step) {
    at::Tensor losses = at::zeros({scales.size(0)}, at::kDouble);
    for (size_t i = 0; i < consumers.size(); ++i) {
      const at::Tensor rows = consumers[i].slice(0, 0, consumers[i].size(0), step);
      losses += losses_together(work, rows, statistics, scales, settings[i]);
    }
    return losses;
  });
}

/// By tap, the pair that scales it: a tap has one at most, since it must have all of the tap's
/// layers.
std::map<int, AwqPair> awq_pairs(const RunConfig& config, const BlockSpec& spec,
                                 const std::string& prefix) {
  std::map<int, AwqPair> pairs;
  for (const auto& pair : spec.scale_pairs)
    if (auto settings = settings_of(config, spec, prefix, pair); !settings.empty())
      pairs[find_linear(spec, pair.consumers.front()).tap] = {pair, std::move(settings)};
  return pairs;
}

std::set<int> compressed_taps(const RunConfig& config, const BlockSpec& spec,
                              const std::string& prefix) {
  std::set<int> taps;
  for (const auto& linear : spec.linears)
    if (settings_for(config, prefix + linear.name + ".weight")) taps.insert(linear.tap);
  return taps;
}

/// A block's scales, found and folded into its weights input by input, in the order of the stages.
class ScaleFolder {
 public:
  ScaleFolder(const LayerWork& work, int64_t layer, const std::map<int, AwqPair>& pairs,
              BlockWeights& weights)
      : work_(work), block_(work.model.block(layer)), pairs_(pairs), weights_(weights) {
    weights = place(weights, {});  // the search runs on the host's threads
    dense_ = weights;
  }

  /// In the host's memory.
  const BlockWeights& dense() const { return dense_; }

  /// `states`: where they are kept, at the stage that reads the input.
  void take(int tap, TapStatistics statistics, const LeafStates* states) {
    const auto found = pairs_.find(tap);
    scaled_.hessians[tap] = statistics.hessian;
    if (found == pairs_.end()) return;
    statistics.hessian = statistics.hessian.to(at::kCPU);
    const ScalePair& pair = found->second.pair;
    const at::Tensor scale = best_scale(work_, block_, found->second, states, dense_, statistics);
    fold_scale(weights_, pair, scale);
    scaled_.hessians[tap] = hessian_of_scaled(statistics.hessian, scale);
    for (const auto& name : folded_tensors(weights_, pair)) rewritten_.insert(name);
  }

  ScaledBlock result() && {
    scaled_.rewritten = {rewritten_.begin(), rewritten_.end()};
    return std::move(scaled_);
  }

 private:
  const LayerWork& work_;
  const Block& block_;
  const std::map<int, AwqPair>& pairs_;
  BlockWeights& weights_;
  BlockWeights dense_;
  ScaledBlock scaled_;
  std::set<std::string> rewritten_;
};

}  // namespace

ScaledBlock scale_block(const LayerWork& work, int64_t layer, BlockWeights& weights,
                        const HiddenStates& hidden, Measured measured) {
  const Block& block = work.model.block(layer);
  const BlockSpec& spec = block.spec();
  const std::string prefix = work.model.block_prefix(layer);
  const auto pairs = awq_pairs(work.config, spec, prefix);
  if (pairs.empty()) return {};
  std::set<int> taps;
  for (const auto& [tap, pair] : pairs) taps.insert(tap);
  if (measured == Measured::every) taps = compressed_taps(work.config, spec, prefix);
  int last_stage = 0;
  for (const int tap : taps) last_stage = std::max(last_stage, spec.taps[size_t(tap)].stage);

  ScaleFolder scales(work, layer, pairs, weights);
  LeafStates states(work, layer, hidden, scales.dense());
  for (int stage = 0; stage <= last_stage; ++stage) {
    for (const int index : taps) {
      if (spec.taps[size_t(index)].stage != stage) continue;
      stop_together(work.team, work.stop);
      scales.take(
          index,
          measure_tap(work, states, index, {.products = true, .magnitude = pairs.contains(index)}),
          &states);
    }
    if (stage < last_stage) states.advance();
  }
  ScaledBlock scaled = std::move(scales).result();
  if (measured == Measured::every) {
    for (int stage = last_stage; stage < spec.stages; ++stage) states.advance();
    scaled.outputs = hidden;
    states.finish(scaled.outputs);
  }
  return scaled;
}

std::optional<std::map<int, TapNeeds>> scale_needs(const Model& model, const RunConfig& config,
                                                   int64_t layer) {
  const BlockSpec& spec = model.block(layer).spec();
  const std::string prefix = model.block_prefix(layer);
  const auto pairs = awq_pairs(config, spec, prefix);
  std::map<int, TapNeeds> needs;
  if (pairs.empty()) return needs;
  for (const auto& [tap, pair] : pairs)
    if (pair.inspects_module()) return std::nullopt;
  for (const int tap : compressed_taps(config, spec, prefix))
    needs[tap] = {.products = true, .magnitude = pairs.contains(tap)};
  return needs;
}

ScaledBlock scale_measured(const LayerWork& work, int64_t layer, BlockWeights& weights,
                           const std::map<int, TapStatistics>& taps) {
  const BlockSpec& spec = work.model.block(layer).spec();
  const std::string prefix = work.model.block_prefix(layer);
  const auto pairs = awq_pairs(work.config, spec, prefix);
  if (pairs.empty()) return {};
  ScaleFolder scales(work, layer, pairs, weights);
  for (int stage = 0; stage < spec.stages; ++stage)
    for (const int tap : compressed_taps(work.config, spec, prefix)) {
      if (spec.taps[size_t(tap)].stage != stage) continue;
      stop_together(work.team, work.stop);
      scales.take(tap, taps.at(tap), nullptr);
    }
  return std::move(scales).result();
}

}  // namespace selfcal
