#include "pipeline/plan.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <memory>
#include <numeric>
#include <optional>
#include <utility>

#include "base/error.hpp"
#include "pipeline/layout_options.hpp"
#include "pipeline/leaves.hpp"
#include "pipeline/text_losses.hpp"
#include "stages/generate/micro_batch.hpp"

namespace selfcal {
namespace {

/// A layout with what its ranks hold and what it takes.
struct Option {
  Layout layout;
  std::vector<RankPlan> ranks;
  bool keeps_states = true;
  int64_t sampled_at_once = 1;
  bool fits = true;
  double typical_seconds = 0;

  uint64_t memory() const { return std::ranges::max_element(ranks, {}, &RankPlan::memory)->memory; }
};

class Planner {
 public:
  Planner(const RunConfig& config, const ModelSizes& model, const Machine& machine, int sharing,
          bool followed)
      : config_(config),
        model_(model),
        machine_(machine),
        kinds_(layer_kinds(config, model)),
        followed_(followed),
        on_device_(config.device == DeviceChoice::cuda || machine.device_memory > 0),
        memory_(on_device_ ? device_memory(config, model, sharing)
                           : host_memory(config, model, sharing)),
        beside_(on_device_ ? memory_beside_device(config, model) : nullptr),
        leaves_(cut_leaves(config.calibration.sequences, config.calibration.length,
                           config.calibration.micro_batch)) {
    threads_ = config.threads > 0 ? config.threads : std::max(1, machine.cores / machine.ranks);
    limited_ = config.layout.memory > 0 || machine.device_memory > 0;
    const uint64_t there =
        on_device_ ? machine.device_memory : machine.memory / static_cast<uint64_t>(machine.ranks);
    limit_ = config.layout.memory > 0 ? config.layout.memory : there;
  }

  Plan plan(int ranks) const {
    std::vector<Option> options = weigh(ranks);
    const auto taken = best(options);
    if (limited_ && !taken->fits) refuse(*taken);
    Plan plan{.layout = taken->layout,
              .threads = threads_,
              .ranks = taken->ranks,
              .memory_limit = limit_,
              .on_device = on_device_,
              .machine = machine_,
              .keeps_states = taken->keeps_states,
              .sampled_at_once = taken->sampled_at_once,
              .rejected = {}};
    plan.seconds = seconds_of(taken->layout);
    plan.total_seconds = sum(plan.seconds);
    plan.shard_parts = shard_parts(taken->layout);
    plan.outlier_seconds =
        outlier_seconds(config_, model_, kinds_, taken->layout, machine_, threads_);
    for (auto option = options.begin(); option != options.end(); ++option)
      if (option != taken)
        plan.rejected.push_back({option->layout.describe(), sum(seconds_of(option->layout)),
                                 option->memory(), option->fits});
    return plan;
  }

 private:
  bool samples() const { return config_.calibration.source == CalibrationSource::self; }
  PhaseSeconds seconds_of(const Layout& layout) const {
    return expected_seconds(config_, model_, kinds_, layout, machine_, threads_);
  }

  /// What layouts are chosen with: not the moment's speed.
  Machine typical() const { return machine_.device.empty() ? typical_machine() : machine_; }

  /// Shards are cut by what layers cost a team of the size that these ranks make.
  Layout layout_of(const LayoutSettings& settings, int ranks) const {
    const int team = std::max(1, ranks / std::max(1, settings.shards));
    return Layout(settings, ranks, costs_of_layers(team));
  }

  std::vector<double> costs_of_layers(int team) const {
    return layer_seconds(config_, model_, kinds_, team, typical(), threads_);
  }

  std::vector<double> shard_parts(const Layout& layout) const {
    const auto costs = costs_of_layers(static_cast<int>(layout.team_of(0).size()));
    const double all = std::accumulate(costs.begin(), costs.end(), 0.0);
    std::vector<double> parts;
    for (int shard = 0; shard < layout.shards(); ++shard)
      parts.push_back(std::accumulate(costs.begin() + layout.first_layer(shard),
                                      costs.begin() + layout.first_layer(shard + 1), 0.0) /
                      all);
    return parts;
  }

  /// All layouts that fit the number of ranks. When none does, the first one's error is thrown.
  std::vector<Option> weigh(int ranks) const {
    LayoutSettings settings = config_.layout;
    if (settings.depth == 0) settings.depth = smallest_depth().value_or(1);
    settings.depth = std::min(settings.depth, config_.layout.depth == 0 ? ranks : settings.depth);
    std::vector<Option> options;
    std::exception_ptr first_error;
    for (const auto& open : layout_options(settings, config_.propagation == Propagation::dense,
                                           ranks, model_.shape.layers)) {
      try {
        const Layout layout = layout_of(open, ranks);
        // More shards may leave no rank to sample alone, which is not what `split` asks for.
        const bool asked = config_.layout.mode != LayoutSettings::Mode::split || options.empty() ||
                           layout.split() == options.front().layout.split();
        if (asked) options.push_back(weighed(layout));
      } catch (const Error&) {
        if (!first_error) first_error = std::current_exception();
      }
    }
    if (options.empty()) std::rethrow_exception(first_error);
    return options;
  }

  Option weighed(const Layout& layout) const {
    Option option{layout, {}, true, 1, true, 0};
    const auto fits = [&](bool keeps_states, int64_t sampled_at_once) {
      option.keeps_states = keeps_states;
      option.sampled_at_once = sampled_at_once;
      option.ranks.clear();
      for (int rank = 0; rank < layout.ranks(); ++rank)
        option.ranks.push_back(rank_plan(layout, rank, keeps_states, sampled_at_once));
      option.fits = limit_ == 0 || option.memory() <= limit_;
      return option.fits;
    };
    int64_t at_once = samples() ? micro_batches_at_once(config_.calibration, model_.shape,
                                                        model_.block_parameters)
                                : 1;
    while (!fits(true, at_once) && at_once > 1) --at_once;
    if (!option.fits) fits(false, 1);
    option.typical_seconds =
        sum(expected_seconds(config_, model_, kinds_, layout, typical(), threads_));
    return option;
  }

  /// The fastest that fits; another one must be faster by more than a little than a simpler one.
  std::vector<Option>::const_iterator best(const std::vector<Option>& options) const {
    constexpr double clearly = 0.98;
    auto taken = options.begin();
    for (auto option = taken + 1; option != options.end(); ++option) {
      const bool cures = limited_ && option->fits && !taken->fits;
      const bool worse = limited_ && !option->fits && taken->fits;
      if (cures || (!worse && option->typical_seconds < clearly * taken->typical_seconds))
        taken = option;
    }
    return taken;
  }

  RankPlan rank_plan(const Layout& layout, int rank, bool keeps_states, int64_t at_once) const {
    RankPlan plan;
    const int shard = layout.shard_of(rank);
    plan.rank = rank;
    plan.first_layer = layout.first_layer(shard);
    plan.layers = layout.first_layer(shard + 1) - plan.first_layer;
    plan.tensors = plan.layers * static_cast<int64_t>(model_.block.linears.size());
    int64_t rows = 0;
    for (const auto& leaf : leaves_)
      if (layout.owner(leaf.index, shard) == rank) {
        ++plan.leaves;
        rows += leaf.rows;
      }
    const int place = rank - layout.generators().front();  // the generators follow each other
    if (samples() && place >= 0 && place < static_cast<int>(layout.generators().size())) {
      for (int64_t batch = 0; batch < micro_batches(config_.calibration); ++batch)
        plan.micro_batches += layout.replica_of(batch) == place / layout.depth() ? 1 : 0;
    }
    plan.role = plan.micro_batches > 0 ? "samples, then compresses" : "compresses";
    const bool embeds = shard == 0 || config_.method.sparsity.by_outliers,
               leads = layout.team_of(shard).front() == rank,
               alone = layout.team_of(shard).size() == 1;
    const bool several = layout.shards() > 1, dense = config_.propagation == Propagation::dense;
    ShardEdges compressing, sampling;
    if (several && !dense && followed_ && shard + 1 < layout.shards()) compressing.waiting = rows;
    if (several && dense) {
      if (shard > 0) sampling.received = rows;
      sampling.forwarded = forwarded_at_once(layout, rank);
      sampling.reads_blocks = !streams(layout) && sampling.forwarded > 0;
    }
    const auto uses_of = [&](const MemoryModel& memory) {
      std::vector<MemoryUse> uses;
      if (plan.micro_batches > 0) {
        uses.push_back(
            memory.sampling(place % layout.depth(), layout.depth(),
                            batches_of_step(plan.micro_batches, at_once, layout.depth())));
        if (streams(layout)) memory.add_edges(uses.back(), sampling);
      }
      if (!streams(layout) && sampling.forwarded > 0) {
        uses.push_back(memory.embedding(sampling.forwarded));
        uses.back().when = "forwards for later shards";
        memory.add_edges(uses.back(), sampling);
      }
      if (embeds) uses.push_back(memory.embedding(rows));
      for (auto& use : memory.compressing({rows, leads, alone, keeps_states})) {
        memory.add_edges(use, compressing);
        uses.push_back(std::move(use));
      }
      if (const double tokens = scored_tokens(layout, rank); tokens > 0)
        uses.push_back(memory.scoring(tokens));
      return uses;
    };
    plan.uses = uses_of(*memory_);
    if (beside_) plan.host_uses = uses_of(*beside_);
    for (const auto& use : plan.uses) plan.memory = std::max(plan.memory, use.total());
    return plan;
  }

  /// Of the text that takes more room: the evaluation's, or the beginning of the calibration set.
  double scored_tokens(const Layout& layout, int rank) const {
    const auto mine = [&](int64_t leaves) {
      const int64_t of_rank = (leaves + layout.ranks() - 1 - rank) / layout.ranks();
      return static_cast<double>(of_rank);
    };
    const EvaluateSettings& evaluate = config_.evaluate;
    double tokens = mine(evaluate.leaves) * static_cast<double>(evaluate.leaf_tokens);
    if (evaluate.calibration_loss == AutoFlag::yes) {
      const auto leaves = std::min(static_cast<int64_t>(leaves_.size()), leaves_of_loss);
      const int64_t length = config_.calibration.length;
      tokens = std::max(tokens, mine(leaves) * static_cast<double>(leaf_rows(length) * length));
    }
    return tokens;
  }

  /// Sequences that a rank has to forward to later shards at a time: a micro-batch as it is
  /// sampled, or all that are given.
  int64_t forwarded_at_once(const Layout& layout, int rank) const {
    int64_t rows = 0;
    for (const auto& leaf : leaves_)
      if (layout.forwarder_of(leaf) == rank) rows += leaf.rows;
    return streams(layout) ? std::min(rows, config_.calibration.micro_batch) : rows;
  }

  /// Whether what later shards start from is sent as it is sampled: by ranks that hold the model.
  bool streams(const Layout& layout) const { return samples() && layout.depth() == 1; }

  /// The fewest ranks that a copy of the model has to be spread over, in whole layers; 1 where the
  /// memory is not known or nothing is sampled.
  std::optional<int> smallest_depth() const {
    if (!limited_ || !samples()) return 1;
    for (int depth = 1; depth <= static_cast<int>(model_.shape.layers); ++depth)
      if (memory_->most_to_sample(depth) <= limit_) return depth;
    return std::nullopt;
  }

  /// What the rank that needs most must have to compress, if need be by computing again.
  uint64_t least_to_compress(const Layout& layout) const {
    uint64_t least = 0;
    for (int rank = 0; rank < layout.ranks(); ++rank)
      for (const auto& use : rank_plan(layout, rank, false, 1).uses)
        if (use.when != "samples") least = std::max(least, use.total());
    return least;
  }

  /// The smallest team of each shard whose ranks hold what compressing needs.
  std::string smallest_team(int shards) const {
    constexpr int most_ranks = 1 << 14;
    LayoutSettings settings = config_.layout;
    settings.mode = LayoutSettings::Mode::shared;
    settings.replicas = settings.team = 0;
    settings.depth = 1;
    settings.shards = shards;
    uint64_t least = 0;
    for (int team = 1; team * shards <= most_ranks; team += std::max(1, team / 8)) {
      least = least_to_compress(layout_of(settings, team * shards));
      if (least <= limit_) return fmt::format("a team of {} would fit", team);
      // More ranks than leaves share no further.
      if (team >= std::ssize(leaves_)) break;
    }
    return fmt::format("no team would fit, compressing takes at least {} a rank",
                       memory_text(least));
  }

  /// Names what does not fit, with the numbers and with what would.
  [[noreturn]] void refuse(const Option& option) const {
    const auto largest = std::ranges::max_element(option.ranks, {}, &RankPlan::memory);
    const auto use = std::ranges::max_element(largest->uses, {}, &MemoryUse::total);
    std::string depth;
    if (samples()) {
      const auto least = smallest_depth();
      depth = least ? fmt::format("generators of depth {} and ", *least)
                    : "generators of no depth and ";
    }
    fail(ExitCode::config,
         "{}: rank {} needs {}, found {}, while it {}; {}{}; more ranks, fewer sequences or "
         "a smaller micro_batch need less",
         limit_name(), largest->rank, memory_text(largest->memory), memory_text(limit_), use->when,
         depth, smallest_team(option.layout.shards()));
  }

  /// What says how much a rank may use.
  std::string limit_name() const {
    if (config_.layout.memory > 0) return "layout.memory";
    return machine_.device.empty() ? "device: cuda" : machine_.device;
  }

  const RunConfig& config_;
  const ModelSizes& model_;
  const Machine& machine_;
  LayerKinds kinds_;
  bool followed_;
  bool on_device_;
  std::unique_ptr<MemoryModel> memory_, beside_;
  std::vector<Leaf> leaves_;
  int threads_ = 1;
  bool limited_ = false;  // whether too much memory is an error
  uint64_t limit_ = 0;
};

}  // namespace

const RankPlan& Plan::largest_rank() const {
  return *std::ranges::max_element(ranks, {}, &RankPlan::memory);
}

Plan make_plan(const RunConfig& config, const ModelSizes& model, int ranks, const Machine& machine,
               int sharing, bool followed) {
  return Planner(config, model, machine, sharing, followed).plan(ranks);
}

}  // namespace selfcal
