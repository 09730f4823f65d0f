#include "pipeline/cost_model.hpp"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "pipeline/layer_cost.hpp"
#include "pipeline/text_losses.hpp"
#include "stages/generate/micro_batch.hpp"

namespace selfcal {
namespace {

class CostModel {
 public:
  CostModel(const RunConfig& config, const ModelSizes& model, const LayerKinds& kinds,
            const Layout& layout, const Machine& machine, int threads)
      : config_(config),
        calibration_(config.calibration),
        model_(model),
        kinds_(kinds),
        layout_(layout),
        machine_(machine),
        cost_(config, model, machine, threads) {}

  PhaseSeconds outliers() {
    add_outliers();
    return seconds_;
  }

  PhaseSeconds seconds() {
    if (calibration_.source == CalibrationSource::self) add_sampling();
    const bool dense = config_.propagation == Propagation::dense;
    add_outliers();
    if (dense && layout_.shards() > 1) add_dense_boundaries();
    std::vector<PhaseSeconds> shards;
    for (int shard = 0; shard < layout_.shards(); ++shard) shards.push_back(of_shard(shard));
    // With sequential propagation the shards take turns; with dense propagation they work at once.
    if (dense)
      add(*std::ranges::max_element(shards, {}, sum));
    else
      for (const auto& shard : shards) add(shard);
    add_output();
    add_evaluation();
    return seconds_;
  }

 private:
  void add(Phase phase, double more) { seconds_[static_cast<size_t>(phase)] += more; }
  void add(const PhaseSeconds& more) {
    std::ranges::transform(seconds_, more, seconds_.begin(), std::plus<>{});
  }

  /// A step reads all weights and the cache so far, for some micro-batches. With several ranks a
  /// copy, as many steps are on their way, and the slowest rank sets the pace.
  void add_sampling() {
    const double batches = busiest(micro_batches(calibration_), layout_.replicas());
    const int64_t at_once =
        batches_of_step(int64_t(batches),
                        micro_batches_at_once(calibration_, model_.shape, model_.block_parameters),
                        layout_.depth());
    const double block =
        step_bytes(static_cast<double>(model_.block_parameters), model_.shape,
                   model_.element_bytes(), at_once * calibration_.micro_batch, calibration_.length);
    const auto first = decode_runs(model_, layout_.depth());
    double step = 0, slowest = 0;
    for (size_t run = 0; run + 1 < first.size(); ++run) {
      const auto layers = static_cast<double>(first[run + 1] - first[run]);
      double bytes = layers * block;
      if (run + 2 == first.size()) bytes += model_.head_weights() * model_.element_bytes();
      const double seconds = bytes / (machine_.rates.decode * cost_.share());
      step += seconds;
      slowest = std::max(slowest, seconds);
    }
    const double steps = std::ceil(batches / static_cast<double>(at_once)),
                 in_flight = std::min<double>(layout_.depth(), steps);
    add(Phase::sample, std::ceil(steps / in_flight) * static_cast<double>(calibration_.length) *
                           std::max(step, in_flight * slowest));
  }

  /// The generators' forward of the dense model up to the last shard, and its sends.
  void add_dense_boundaries() {
    const int later = layout_.shards() - 1;
    const double part = busiest(micro_batches(calibration_), layout_.replicas()) /
                        static_cast<double>(micro_batches(calibration_) * layout_.depth());
    add(Phase::forward,
        part * static_cast<double>(layout_.first_layer(later)) * cost_.forward_seconds());
    add(Phase::send, part * later * cost_.hidden_bytes() / machine_.network);
  }

  /// Forward of all leaves, dealt over all ranks, through all layers; scores of the weights.
  void add_outliers() {
    if (!config_.method.sparsity.by_outliers) return;
    const int64_t ranks = layout_.ranks();
    const auto layers = static_cast<double>(model_.shape.layers);
    add(Phase::forward, layers * busiest(cost_.leaves(), ranks) /
                            static_cast<double>(cost_.leaves()) * cost_.forward_seconds());
    // Weights are read from memory twice, as by a step of sampling.
    add(Phase::statistics, 2 * layers * cost_.block_bytes() / static_cast<double>(ranks) /
                               (machine_.rates.decode * cost_.share()));
    add(Phase::read, cost_.block_bytes() / machine_.disk);
    if (ranks > 1) add(Phase::gather, layers * cost_.block_bytes() / machine_.network);
  }

  const BlockSettings& settings_of(int64_t layer) const {
    return kinds_.settings[kinds_.of_layer[static_cast<size_t>(layer)]];
  }

  PhaseSeconds of_shard(int shard) const {
    const auto members = std::ssize(layout_.team_of(shard));
    PhaseSeconds seconds{};
    std::vector<PhaseSeconds> of_kind;
    for (const auto& settings : kinds_.settings) of_kind.push_back(cost_.of(settings, members));
    // A layer is written while the next one is compressed: what takes longer, and the last one, is
    // waited for.
    double writing = 0;
    for (int64_t layer = layout_.first_layer(shard); layer < layout_.first_layer(shard + 1);
         ++layer) {
      const PhaseSeconds& work = of_kind[kinds_.of_layer[static_cast<size_t>(layer)]];
      std::ranges::transform(seconds, work, seconds.begin(), std::plus<>{});
      seconds[static_cast<size_t>(Phase::write)] += std::max(0.0, writing - sum(work));
      writing = cost_.write_seconds(settings_of(layer));
    }
    seconds[static_cast<size_t>(Phase::write)] += writing;
    // The next layer is read while one is compressed: only the first is waited for.
    seconds[static_cast<size_t>(Phase::read)] += cost_.block_bytes() / machine_.disk;
    if (shard + 1 < layout_.shards() && config_.propagation == Propagation::sequential)
      seconds[static_cast<size_t>(Phase::send)] +=
          cost_.hidden_bytes() / static_cast<double>(members) / machine_.network;
    return seconds;
  }

  /// The whole model in the gathered checkpoint and in every export, which all ranks write.
  void add_output() {
    const double copies = 1.0 + static_cast<double>(config_.exports.size());
    double bytes = static_cast<double>(model_.outer_parameters) * model_.element_bytes();
    for (int64_t layer = 0; layer < model_.shape.layers; ++layer)
      bytes += cost_.compressed_bytes(settings_of(layer)) + cost_.skipped_bytes(settings_of(layer));
    add(Phase::write, copies * bytes / machine_.disk_of(layout_.ranks()));
  }

  double calibration_tokens() const {
    return static_cast<double>(calibration_.sequences * calibration_.length);
  }

  /// Of the dense model, then of the compressed one: leaves of so many tokens, dealt over all
  /// ranks.
  void add_losses(int64_t leaves, double leaf_tokens) {
    const double leaf = static_cast<double>(model_.shape.layers) * cost_.forward_seconds() *
                            leaf_tokens / calibration_tokens() +
                        cost_.logits_seconds(leaf_tokens);
    add(Phase::evaluate, 2 * leaf * busiest(leaves, layout_.ranks()));
  }

  void add_evaluation() {
    const EvaluateSettings& evaluate = config_.evaluate;
    if (evaluate.calibration_loss == AutoFlag::yes)
      add_losses(std::min(cost_.leaves(), leaves_of_loss),
                 calibration_tokens() / static_cast<double>(cost_.leaves()));
    add_losses(evaluate.leaves, static_cast<double>(evaluate.leaf_tokens));
  }

  const RunConfig& config_;
  const CalibrationSettings& calibration_;
  const ModelSizes& model_;
  const LayerKinds& kinds_;
  const Layout& layout_;
  const Machine& machine_;
  LayerCost cost_;
  PhaseSeconds seconds_{};
};

}  // namespace

PhaseSeconds expected_seconds(const RunConfig& config, const ModelSizes& model,
                              const LayerKinds& kinds, const Layout& layout, const Machine& machine,
                              int threads) {
  if (machine.rates.forward <= 0) return {};
  return CostModel(config, model, kinds, layout, machine, threads).seconds();
}

PhaseSeconds outlier_seconds(const RunConfig& config, const ModelSizes& model,
                             const LayerKinds& kinds, const Layout& layout, const Machine& machine,
                             int threads) {
  if (machine.rates.forward <= 0) return {};
  return CostModel(config, model, kinds, layout, machine, threads).outliers();
}

std::vector<double> layer_seconds(const RunConfig& config, const ModelSizes& model,
                                  const LayerKinds& kinds, int team, const Machine& machine,
                                  int threads) {
  const LayerCost cost(config, model, machine, threads);
  std::vector<double> of_kind, seconds;
  for (const auto& settings : kinds.settings)
    of_kind.push_back(std::max(sum(cost.of(settings, team)), cost.write_seconds(settings)));
  for (const size_t kind : kinds.of_layer) seconds.push_back(of_kind[kind]);
  return seconds;
}

double sum(const PhaseSeconds& seconds) {
  return std::accumulate(seconds.begin(), seconds.end(), 0.0);
}

}  // namespace selfcal
