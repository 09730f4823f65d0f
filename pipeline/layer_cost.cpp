#include "pipeline/layer_cost.hpp"

#include <cmath>

#include "pipeline/factor_exchange.hpp"
#include "pipeline/leaves.hpp"
#include "stages/kernels/cpu/tiles.hpp"
#include "stages/solve/cholesky.hpp"
#include "stages/solve/device_tiles.hpp"

namespace selfcal {
namespace {

bool is_awq(const std::optional<MethodSettings>& settings) {
  return settings && settings->name == MethodName::awq;
}

double bytes_of(const Linear& linear, const MethodSettings& method) {
  const int64_t groups = method.group_size > 0 ? linear.columns / method.group_size : 1;
  return static_cast<double>(linear.rows) * (static_cast<double>(linear.columns * method.bits) / 8 +
                                             3.0 * static_cast<double>(groups));
}

/// Of what a worker alone takes for a Cholesky factor of so many rows of tiles, when they are dealt
/// over `workers`: step j takes j products a row from the rows that are left.
double part_of_factor(int64_t rows, int64_t workers) {
  double longest = 0, all = 0;
  for (int64_t j = 1; j < rows; ++j) {
    longest += static_cast<double>(j) * busiest(rows - j, workers);
    all += static_cast<double>(j * (rows - j));
  }
  return all > 0 ? longest / all : 1;
}

}  // namespace

LayerCost::LayerCost(const RunConfig& config, const ModelSizes& model, const Machine& machine,
                     int threads)
    : config_(config),
      model_(model),
      machine_(machine),
      measured_(settle(config.method)),
      threads_(threads),
      share_(machine.share(threads)),
      element_(model.element_bytes()),
      tokens_(static_cast<double>(config.calibration.sequences * config.calibration.length)),
      leaves_(std::ssize(cut_leaves(config.calibration.sequences, config.calibration.length,
                                    config.calibration.micro_batch))) {}

PhaseSeconds LayerCost::of(const BlockSettings& settings, int64_t members) const {
  PhaseSeconds seconds{};
  const auto add = [&](Phase phase, double more) { seconds[static_cast<size_t>(phase)] += more; };
  // Leaves and tiles are whole: the busiest rank counts.
  const double leaf_part = busiest(leaves_, members) / static_cast<double>(leaves_);
  const bool awq = std::ranges::any_of(settings, is_awq);
  // The dense block and the compressed one, unless one is what the other is measured on.
  const bool twice =
      config_.propagation == Propagation::sequential && (awq || !config_.true_sequential);
  add(Phase::forward, leaf_part * forward_seconds() * (twice ? 2 : 1));
  const double steps = std::ceil(std::log2(static_cast<double>(members)));
  for (size_t tap = 0; tap < model_.block.taps.size(); ++tap) {
    const TapWork work = work_of(settings, tap);
    const int64_t columns = model_.block.taps[tap].columns;
    const double squared = static_cast<double>(columns * columns);
    const WidthRates& rates = machine_.rates.at(columns);
    // Norms beside products that were measured take next to nothing.
    if (work.is_measured && (work.takes_products || !needs_products(measured_))) {
      add(Phase::statistics, leaf_part * tokens_ * squared / (rates.statistics * share_));
      if (rates.sums > 0) add(Phase::statistics, squared / (rates.sums * share_));
    }
    const auto found = static_cast<double>(work.factors.size());
    const double factor =
        found * squared * static_cast<double>(columns) / (rates.factorise * share_);
    const double part = 1 / static_cast<double>(members);
    if (members > 1 && machine_.device.empty() && columns >= narrowest_dealt_factor) {
      // Tiles of rows for the threads of all ranks, then strips of the inverse; each rank goes over
      // the whole matrix as well.
      const int64_t rows = kernels::ceil_divide(columns, Cholesky<float>::tile);
      add(Phase::factorise,
          factor / 2 * (threads_ * part_of_factor(rows, members * threads_) + part));
      if (rates.sums > 0) add(Phase::factorise, found * squared / (rates.sums * share_));
      add(Phase::gather, found * 2 * static_cast<double>(rows) * steps * machine_.latency);
    } else {
      // One rank's; the others measure controls meanwhile, which are half of what a solve takes.
      add(Phase::factorise, factor);
      add(Phase::solve, -std::min(solve_seconds(settings, tap, members) / 2, factor * (1 - part)));
    }
    if (!work.takes_products || members == 1) continue;
    add(Phase::reduce, 6 * steps * machine_.latency);
    add(Phase::gather, found * (4 * squared / machine_.network + 6 * steps * machine_.latency));
  }
  add(Phase::reduce, reduced_bytes(settings, members) / machine_.network);
  add(Phase::solve, solve_seconds(settings, members));
  if (awq) add(Phase::solve, search_seconds(settings, leaf_part, members));
  const double solved_bytes = block_bytes() - skipped_bytes(settings);
  if (members > 1) add(Phase::gather, (block_bytes() + solved_bytes) / machine_.network);
  return seconds;
}

LayerCost::TapWork LayerCost::work_of(const BlockSettings& settings, size_t tap) const {
  TapWork work;
  for (size_t i = 0; i < settings.size(); ++i) {
    if (!settings[i] || model_.block.linears[i].tap != static_cast<int>(tap)) continue;
    work.is_measured = true;
    work.takes_products = work.takes_products || needs_products(*settings[i]);
    if (compensates(settings[i]->name)) work.factors.insert(factor_settings(*settings[i]));
  }
  return work;
}

/// A ring moves a sum twice through every link but one; a tree has log2 steps.
double LayerCost::reduced_bytes(const BlockSettings& settings, int64_t members) const {
  double entries = 0;
  for (size_t tap = 0; tap < model_.block.taps.size(); ++tap)
    if (const auto columns = static_cast<double>(model_.block.taps[tap].columns);
        work_of(settings, tap).takes_products)
      entries += columns * columns / 2;
  return 2 * static_cast<double>(members - 1) / static_cast<double>(members) * 8 * entries;
}

double LayerCost::forward_seconds() const {
  return forward_flops(model_.block, model_.shape.hidden, config_.calibration.length, tokens_) /
         (machine_.rates.forward * share_);
}

double LayerCost::logits_seconds(double tokens) const {
  const HardwareRates& rates = machine_.rates;
  return 2 * tokens * model_.head_weights() /
         ((rates.logits > 0 ? rates.logits : rates.forward) * share_);
}

double LayerCost::hidden_bytes() const {
  return tokens_ * static_cast<double>(model_.shape.hidden) * element_;
}

/// Matrices that read one input are stacked before their tiles are dealt.
double LayerCost::solve_seconds(const BlockSettings& settings, size_t tap, int64_t members) const {
  const int64_t tile = machine_.device.empty() ? lanes::rows : DeviceTiles::rows;
  int64_t tiles = 0;
  for (size_t i = 0; i < settings.size(); ++i) {
    const Linear& linear = model_.block.linears[i];
    // Without products neither a row's solve nor its errors take columns^2.
    if (linear.tap == static_cast<int>(tap) && settings[i] &&
        (needs_products(*settings[i]) || !needs_products(measured_)))
      tiles += (linear.rows + tile - 1) / tile;
  }
  if (tiles == 0) return 0;  // whatever the rate
  const int64_t columns = model_.block.taps[tap].columns;
  const auto squared = static_cast<double>(columns * columns);
  const WidthRates& rates = machine_.rates.at(columns);
  // Each rank packs all panels of a factor and a Hessian.
  const double packed = rates.panels > 0 ? squared / rates.panels : 0;
  return (busiest(tiles, members) * static_cast<double>(tile) * squared / rates.solve + packed) /
         share_;
}

double LayerCost::solve_seconds(const BlockSettings& settings, int64_t members) const {
  double seconds = 0;
  for (size_t tap = 0; tap < model_.block.taps.size(); ++tap)
    seconds += solve_seconds(settings, tap, members);
  return seconds;
}

/// All candidates on an eighth of the rows or leaves, the best four on all of them: x H x^T of a
/// row takes what its solve takes.
double LayerCost::search_seconds(const BlockSettings& settings, double leaf_part,
                                 int64_t members) const {
  constexpr double tried = 21.0 / 8 + 4;
  if (config_.method.scale_loss == ScaleLoss::module)
    return leaf_part * (tried + 1) * forward_seconds();
  BlockSettings searched = settings;
  for (auto& linear : searched)
    if (!is_awq(linear)) linear.reset();
  return tried * solve_seconds(searched, members);
}

double LayerCost::compressed_bytes(const BlockSettings& settings) const {
  double bytes = 0;
  for (size_t i = 0; i < settings.size(); ++i)
    if (settings[i]) bytes += bytes_of(model_.block.linears[i], *settings[i]);
  return bytes;
}

double LayerCost::skipped_bytes(const BlockSettings& settings) const {
  double weights = 0;
  for (size_t i = 0; i < settings.size(); ++i) {
    const Linear& linear = model_.block.linears[i];
    if (!settings[i]) weights += static_cast<double>(linear.rows * linear.columns);
  }
  return weights * element_;
}

}  // namespace selfcal
