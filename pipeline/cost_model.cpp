#include "pipeline/cost_model.hpp"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "pipeline/factor_exchange.hpp"
#include "pipeline/leaves.hpp"
#include "stages/generate/micro_batch.hpp"
#include "stages/solve/device_tiles.hpp"

namespace selfcal {
namespace {

/// Of so many equal pieces, those of the busiest worker.
double busiest(int64_t pieces, int64_t workers) {
  const int64_t most = (pieces + workers - 1) / std::max<int64_t>(1, workers);
  return static_cast<double>(most);
}

class CostModel {
 public:
  CostModel(const RunConfig& config, const ModelSizes& model, const Layout& layout,
            const Machine& machine, int threads)
      : config_(config),
        calibration_(config.calibration),
        model_(model),
        layout_(layout),
        machine_(machine),
        share_(machine.share(threads)),
        element_(model.element_bytes()),
        tokens_(static_cast<double>(calibration_.sequences * calibration_.length)),
        leaves_(static_cast<int64_t>(
            cut_leaves(calibration_.sequences, calibration_.length, calibration_.micro_batch)
                .size())) {}

  PhaseSeconds outliers() {
    add_outliers();
    return seconds_;
  }

  PhaseSeconds seconds() {
    if (calibration_.source == CalibrationSource::self) add_sampling();
    const bool dense = config_.propagation == Propagation::dense;
    add_outliers();
    if (dense && layout_.shards() > 1) add_dense_boundaries();
    // With sequential propagation the shards take turns; with dense propagation they work at once.
    int slowest = 0;
    for (int shard = 1; shard < layout_.shards(); ++shard)
      if (layers_of(shard) > layers_of(slowest)) slowest = shard;
    for (int shard = 0; shard < layout_.shards(); ++shard)
      if (!dense || shard == slowest) add_shard(shard);
    add_output();
    return seconds_;
  }

 private:
  void add(Phase phase, double more) { seconds_[static_cast<size_t>(phase)] += more; }

  double layers_of(int shard) const {
    return static_cast<double>(layout_.first_layer(shard + 1) - layout_.first_layer(shard));
  }

  /// Forward of all tokens through a block.
  double forward_flops() const {
    return selfcal::forward_flops(model_.block, model_.shape.hidden, calibration_.length, tokens_);
  }

  /// A step reads all weights and the cache so far, for a micro-batch at a time. With several ranks
  /// a copy, as many micro-batches are on their way, and the slowest rank sets the pace.
  void add_sampling() {
    const double block = step_bytes(static_cast<double>(model_.block_parameters), model_.shape,
                                    element_, calibration_);
    const auto first = decode_runs(model_, layout_.depth());
    double step = 0, slowest = 0;
    for (size_t run = 0; run + 1 < first.size(); ++run) {
      const auto layers = static_cast<double>(first[run + 1] - first[run]);
      double bytes = layers * block;
      if (run + 2 == first.size()) bytes += model_.head_weights() * element_;
      const double seconds = bytes / (machine_.rates.decode * share_);
      step += seconds;
      slowest = std::max(slowest, seconds);
    }
    const double batches = busiest(micro_batches(calibration_), layout_.replicas());
    const double in_flight = std::min<double>(layout_.depth(), batches);
    add(Phase::sample, std::ceil(batches / in_flight) * static_cast<double>(calibration_.length) *
                           std::max(step, in_flight * slowest));
  }

  /// The generators' forward of the dense model up to the last shard, and its sends.
  void add_dense_boundaries() {
    const int later = layout_.shards() - 1;
    const double part = busiest(micro_batches(calibration_), layout_.replicas()) /
                        static_cast<double>(micro_batches(calibration_));
    add(Phase::forward, part * static_cast<double>(layout_.first_layer(later)) * forward_flops() /
                            (machine_.rates.forward * share_));
    add(Phase::send, part * later * hidden_bytes() / machine_.network);
  }

  /// Forward of all leaves, dealt over all ranks, through all layers; scores of the weights.
  void add_outliers() {
    if (!config_.method.sparsity.by_outliers) return;
    const int64_t ranks = layout_.ranks();
    const auto layers = static_cast<double>(model_.shape.layers);
    const double block_bytes = static_cast<double>(model_.block_parameters) * element_;
    add(Phase::forward, layers * busiest(leaves_, ranks) / static_cast<double>(leaves_) *
                            forward_flops() / (machine_.rates.forward * share_));
    // Weights are read from memory twice, as by a step of sampling.
    add(Phase::statistics,
        2 * layers * block_bytes / static_cast<double>(ranks) / (machine_.rates.decode * share_));
    add(Phase::read, block_bytes / machine_.disk);
    if (ranks > 1) add(Phase::gather, layers * block_bytes / machine_.network);
  }

  double hidden_bytes() const {
    return tokens_ * static_cast<double>(model_.shape.hidden) * element_;
  }

  void add_shard(int shard) {
    const auto members = static_cast<int64_t>(layout_.team_of(shard).size());
    const double layers = layers_of(shard);
    // Leaves and tiles are whole: the busiest rank counts.
    const double leaf_part = busiest(leaves_, members) / static_cast<double>(leaves_);
    const bool awq = config_.method.name == MethodName::awq;
    // The dense block and the compressed one, unless one is what the other is measured on.
    const bool twice =
        config_.propagation == Propagation::sequential && (awq || !config_.true_sequential);
    add(Phase::forward,
        layers * leaf_part * forward_flops() * (twice ? 2 : 1) / (machine_.rates.forward * share_));
    // A ring moves a sum twice through every link but one; a tree has log2 steps.
    const double ring = static_cast<double>(members - 1) / static_cast<double>(members);
    const double steps = std::ceil(std::log2(static_cast<double>(members)));
    const MethodSettings method = settle(config_.method);
    for (const auto& tap : model_.block.taps) {
      const double squared = static_cast<double>(tap.columns * tap.columns);
      const WidthRates& rates = machine_.rates.at(tap.columns);
      add(Phase::statistics, layers * leaf_part * tokens_ * squared / (rates.statistics * share_));
      if (rates.sums > 0) add(Phase::statistics, layers * squared / (rates.sums * share_));
      const double factor = squared * static_cast<double>(tap.columns) / (rates.factorise * share_);
      // One rank's, but for an inverse that is dealt; the others measure controls meanwhile, which
      // are half of what a solve takes.
      const bool dealt =
          members > 1 && machine_.device.empty() && tap.columns >= narrowest_dealt_inverse;
      const double alone = dealt ? factor / 2 : factor;
      add(Phase::factorise, layers * (alone + (factor - alone) / static_cast<double>(members)));
      add(Phase::solve, -layers * std::min(solve_seconds(tap, members) / 2, alone * ring));
      if (!needs_products(method)) continue;
      add(Phase::reduce,
          layers * (2 * ring * 4 * squared / machine_.network + 6 * steps * machine_.latency));
      if (members > 1 && compensates(method.name))
        add(Phase::gather,
            layers * (4 * squared / machine_.network + 6 * steps * machine_.latency));
    }
    add_solve(members, layers);
    if (awq) add_scale_search(leaf_part, members, layers);
    const double block_bytes = static_cast<double>(model_.block_parameters) * element_;
    // The next layer is read while one is compressed: only the first is waited for.
    add(Phase::read, block_bytes / machine_.disk);
    if (members > 1) add(Phase::gather, layers * 2 * block_bytes / machine_.network);
    add(Phase::write, layers * (machine_.commit + compressed_block_bytes() / machine_.disk));
    if (shard + 1 < layout_.shards() && config_.propagation == Propagation::sequential)
      add(Phase::send, hidden_bytes() / static_cast<double>(members) / machine_.network);
  }

  /// Matrices that read one input are stacked before their tiles are dealt.
  double solve_seconds(const Tap& tap, int64_t members) const {
    const int64_t tile = machine_.device.empty() ? lanes::rows : DeviceTiles::rows;
    int64_t tiles = 0;
    for (const auto& linear : model_.block.linears)
      if (model_.block.taps.at(static_cast<size_t>(linear.tap)).name == tap.name)
        tiles += (linear.rows + tile - 1) / tile;
    return busiest(tiles, members) * static_cast<double>(tile * tap.columns * tap.columns) /
           (machine_.rates.at(tap.columns).solve * share_);
  }

  void add_solve(int64_t members, double layers) {
    for (const auto& tap : model_.block.taps)
      add(Phase::solve, layers * solve_seconds(tap, members));
  }

  /// All candidates on an eighth of the rows or leaves, the best four on all of them: x H x^T of a
  /// row takes what its solve takes.
  void add_scale_search(double leaf_part, int64_t members, double layers) {
    constexpr double tried = 21.0 / 8 + 4;
    if (config_.method.scale_loss == ScaleLoss::linear)
      add_solve(members, tried * layers);
    else
      add(Phase::solve,
          layers * leaf_part * (tried + 1) * forward_flops() / (machine_.rates.forward * share_));
  }

  /// Each layer once more in the gathered checkpoint and in every export.
  void add_output() {
    const double copies = 1.0 + static_cast<double>(config_.exports.size());
    add(Phase::write, copies * static_cast<double>(model_.shape.layers) * compressed_block_bytes() /
                          machine_.disk);
  }

  /// Codes, and a scale and a zero point for each group.
  double compressed_block_bytes() const {
    const MethodSettings method = settle(config_.method);
    double bytes = 0;
    for (const auto& linear : model_.block.linears) {
      const int64_t groups = method.group_size > 0 ? linear.columns / method.group_size : 1;
      bytes += static_cast<double>(linear.rows) *
               (static_cast<double>(linear.columns * method.bits) / 8 +
                3.0 * static_cast<double>(groups));
    }
    return bytes;
  }

  const RunConfig& config_;
  const CalibrationSettings& calibration_;
  const ModelSizes& model_;
  const Layout& layout_;
  const Machine& machine_;
  double share_;
  double element_;
  double tokens_;
  int64_t leaves_;
  PhaseSeconds seconds_{};
};

}  // namespace

PhaseSeconds expected_seconds(const RunConfig& config, const ModelSizes& model,
                              const Layout& layout, const Machine& machine, int threads) {
  if (machine.rates.forward <= 0) return {};
  return CostModel(config, model, layout, machine, threads).seconds();
}

PhaseSeconds outlier_seconds(const RunConfig& config, const ModelSizes& model, const Layout& layout,
                             const Machine& machine, int threads) {
  if (machine.rates.forward <= 0) return {};
  return CostModel(config, model, layout, machine, threads).outliers();
}

double sum(const PhaseSeconds& seconds) {
  return std::accumulate(seconds.begin(), seconds.end(), 0.0);
}

}  // namespace selfcal
