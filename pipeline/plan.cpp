#include "pipeline/plan.hpp"

#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "base/error.hpp"
#include "pipeline/leaves.hpp"
#include "stages/generate/generator.hpp"

namespace selfcal {
namespace {

constexpr uint64_t program_bytes = uint64_t{120} << 20;  // libraries and their start, measured
// What the allocator keeps between tensors that come and go, as a share of them; measured.
constexpr double gap_share = 1.3;
constexpr const char* samples_name = "samples";
constexpr double disk_rate = 1e9;        // bytes/s of files; taken, not measured
constexpr double commit_seconds = 0.03;  // fsync and rename of a layer file; measured

double element_bytes(at::ScalarType dtype) { return dtype == at::kFloat ? 4.0 : 2.0; }
uint64_t whole(double bytes) { return static_cast<uint64_t>(std::max(0.0, bytes)); }
double quotient_up(int64_t work, int64_t workers) {
  return static_cast<double>((work + workers - 1) / std::max<int64_t>(1, workers));
}

/// One job's sizes, worked out once.
class Estimate {
 public:
  Estimate(const RunConfig& config, const ModelSizes& model, const Layout& layout,
           const Machine& machine, int threads)
      : config_(config),
        model_(model),
        layout_(layout),
        machine_(machine),
        element_(element_bytes(model.shape.compute_dtype)),
        leaves_(cut_leaves(config.calibration.sequences, config.calibration.length,
                           config.calibration.micro_batch)),
        // A rank has its threads, unless the ranks of a machine have more than it has cores.
        share_(std::min<double>(threads, static_cast<double>(machine.cores) / machine.ranks) /
               std::max(1, machine.rates.threads)) {}

  RankPlan rank(int rank, bool keeps_states) const {
    RankPlan plan;
    const int shard = layout_.shard_of(rank);
    const auto& team = layout_.team_of(shard);
    plan.rank = rank;
    plan.first_layer = layout_.first_layer(shard);
    plan.layers = layout_.first_layer(shard + 1) - plan.first_layer;
    plan.tensors = plan.layers * static_cast<int64_t>(model_.block.linears.size());
    const auto& generators = layout_.generators();
    const auto place = std::ranges::find(generators, rank) - generators.begin();
    if (samples() && place < std::ssize(generators))
      plan.micro_batches = std::ranges::count_if(batches(), [&](int64_t batch) {
        return layout_.replica_of(batch) == place / layout_.depth();
      });
    int64_t rows = 0;
    for (const auto& leaf : leaves_)
      if (layout_.owner(leaf.index, shard) == rank) {
        ++plan.leaves;
        rows += leaf.rows;
      }
    plan.role = plan.micro_batches > 0 ? "samples, then compresses" : "compresses";
    if (plan.micro_batches > 0)
      plan.uses.push_back(sampling_memory(place % layout_.depth(), layout_.depth()));
    if (shard == 0) plan.uses.push_back(embedding_memory(rows));
    plan.uses.push_back(compressing_memory(rows, team.front() == rank, keeps_states));
    for (const auto& use : plan.uses) plan.memory = std::max(plan.memory, use.total());
    return plan;
  }

  /// Of the rank that holds run `run` of `depth` runs of layers of a copy.
  MemoryUse sampling_memory(int64_t run, int64_t depth) const {
    const auto& shape = model_.shape;
    const auto& calibration = config_.calibration;
    const auto first = decode_runs(depth);
    const int64_t layers = first[static_cast<size_t>(run) + 1] - first[static_cast<size_t>(run)];
    const bool outer = run == 0 || run == depth - 1;
    const double weights = static_cast<double>(layers * model_.block_parameters +
                                               (outer ? model_.outer_parameters : 0)) *
                           element_;
    // `depth` micro-batches are on their way at once.
    const double cache =
        2.0 *
        static_cast<double>(depth * layers * calibration.micro_batch * calibration.length *
                            shape.key_value_heads * shape.head_dim) *
        element_;
    MemoryUse use{samples_name, {{"program and libraries", program_bytes}}};
    use.items.push_back(
        {depth == 1 ? "weights of the whole model" : fmt::format("weights of {} layers", layers),
         whole(weights)});
    use.items.push_back({depth == 1 ? "keys and values of a micro-batch"
                                    : fmt::format("keys and values of {} micro-batches", depth),
                         whole(cache)});
    if (run == depth - 1)
      use.items.push_back(
          {"logits of a step, and their order",
           whole(8.0 * static_cast<double>(calibration.micro_batch * shape.vocabulary))});
    return use;
  }

  /// Of the rank that needs most when a copy is spread over `depth`.
  uint64_t most_to_sample(int64_t depth) const {
    uint64_t most = 0;
    for (int64_t run = 0; run < depth; ++run)
      most = std::max(most, sampling_memory(run, depth).total());
    return most;
  }

  /// What the rank that needs most must have to compress, if need be by computing again.
  uint64_t least_to_compress() const {
    uint64_t least = 0;
    for (int rank = 0; rank < layout_.ranks(); ++rank)
      for (const auto& use : this->rank(rank, false).uses)
        if (use.when != samples_name) least = std::max(least, use.total());
    return least;
  }

  std::array<double, phase_names.size()> seconds() const {
    std::array<double, phase_names.size()> seconds{};
    const auto add = [&](Phase phase, double more) { seconds[static_cast<size_t>(phase)] += more; };
    if (samples()) add(Phase::sample, sampling_seconds());
    // With sequential propagation the shards take turns; with dense propagation they work at once.
    const bool in_turn = config_.propagation == Propagation::sequential;
    int slowest = 0;
    for (int shard = 1; shard < layout_.shards(); ++shard)
      if (layers_of(shard) > layers_of(slowest)) slowest = shard;
    for (int shard = 0; shard < layout_.shards(); ++shard)
      if (in_turn || shard == slowest) add_shard(shard, add);
    return seconds;
  }

 private:
  bool samples() const { return config_.calibration.source == CalibrationSource::self; }
  /// First layers of the runs that a copy is cut into.
  std::vector<int64_t> decode_runs(int64_t depth) const {
    return cut_by_cost(
        decode_costs(model_.shape.layers, static_cast<double>(model_.block_parameters),
                     static_cast<double>(model_.shape.vocabulary * model_.shape.hidden)),
        static_cast<int>(depth));
  }
  std::vector<int64_t> batches() const {
    std::vector<int64_t> list(static_cast<size_t>(micro_batches(config_.calibration)));
    std::iota(list.begin(), list.end(), 0);
    return list;
  }
  int64_t layers_of(int shard) const {
    return layout_.first_layer(shard + 1) - layout_.first_layer(shard);
  }
  double tokens() const {
    return static_cast<double>(config_.calibration.sequences * config_.calibration.length);
  }
  double block_weights() const {
    double sum = 0;
    for (const auto& linear : model_.block.linears)
      sum += static_cast<double>(linear.rows * linear.columns);
    return sum;
  }
  double hidden_bytes(int64_t rows) const {
    return static_cast<double>(rows * config_.calibration.length * model_.shape.hidden) * element_;
  }

  MemoryUse embedding_memory(int64_t rows) const {
    return {
        "reads the embeddings",
        {{"program and libraries", program_bytes},
         {"embeddings and head", whole(static_cast<double>(model_.outer_parameters) * element_)},
         {"hidden states of the leaves", whole(hidden_bytes(rows))}}};
  }

  MemoryUse compressing_memory(int64_t rows, bool leads, bool keeps_states) const {
    const auto& block = model_.block;
    const auto& shape = model_.shape;
    const double row_tokens = static_cast<double>(rows * config_.calibration.length);
    const double leaf =
        static_cast<double>(leaf_rows(config_.calibration.length) * config_.calibration.length);
    int64_t widest_tap = 0, widest_output = 0;
    std::vector<int64_t> outputs(static_cast<size_t>(block.stages), 0);
    double largest_problem = 0;
    for (const auto& linear : block.linears) {
      outputs[static_cast<size_t>(linear.stage)] += linear.rows;
      largest_problem =
          std::max(largest_problem, static_cast<double>(linear.rows * linear.columns));
    }
    for (const auto& tap : block.taps) widest_tap = std::max(widest_tap, tap.columns);
    for (const int64_t output : outputs) widest_output = std::max(widest_output, output);
    const double squared = static_cast<double>(widest_tap) * static_cast<double>(widest_tap);
    const double block_bytes = static_cast<double>(model_.block_parameters) * element_;
    // The dense weights, the compressed ones that replace them, and, for the rank that reads, the
    // next layer's.
    const double blocks = (leads ? 3 : 2) * block_bytes;
    const double states =
        keeps_states ? row_tokens * element_ * static_cast<double>(shape.hidden + widest_tap) : 0.0;
    const double passing =
        leaf * element_ * static_cast<double>(2 * widest_output + 2 * widest_tap);
    const double solved = largest_problem * (4.0 + element_ + 1.0);
    const double gaps = gap_share * (blocks + passing + 5 * 4.0 * squared + solved);
    return {"compresses",
            {{"program and libraries", program_bytes},
             {"weights of a block", whole(blocks)},
             {"hidden states of the leaves", whole(hidden_bytes(rows))},
             {keeps_states ? "inputs of a stage, kept" : "inputs of a stage, computed again",
              whole(states)},
             {"one leaf on its way", whole(passing)},
             {"Hessian: sums as integers, upper half", whole(4.0 * squared)},
             {"Hessian: float32", whole(4.0 * squared)},
             {"factor, and room to find it", whole(3 * 4.0 * squared)},
             {"solved rows", whole(solved)},
             {"gaps between tensors", whole(gaps)}}};
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

  /// A step reads all weights and the cache so far, for a micro-batch at a time. With several ranks
  /// a copy, as many micro-batches are on their way, and the slowest rank sets the pace.
  double sampling_seconds() const {
    const auto& shape = model_.shape;
    const auto& calibration = config_.calibration;
    const double cache = static_cast<double>(calibration.micro_batch * calibration.length *
                                             shape.key_value_heads * shape.head_dim) *
                         element_;
    const auto first = decode_runs(layout_.depth());
    double whole_step = 0, slowest = 0;
    for (size_t run = 0; run + 1 < first.size(); ++run) {
      const auto layers = static_cast<double>(first[run + 1] - first[run]);
      double bytes = layers * (static_cast<double>(model_.block_parameters) * element_ + cache);
      if (run + 2 == first.size())
        bytes += static_cast<double>(shape.vocabulary * shape.hidden) * element_;
      const double seconds = bytes / (machine_.rates.decode * share_);
      whole_step += seconds;
      slowest = std::max(slowest, seconds);
    }
    const int64_t batches_each =
        static_cast<int64_t>(quotient_up(micro_batches(calibration), layout_.replicas()));
    const int64_t in_flight = std::min<int64_t>(layout_.depth(), batches_each);
    return quotient_up(batches_each, in_flight) * static_cast<double>(calibration.length) *
           std::max(whole_step, static_cast<double>(in_flight) * slowest);
  }

  template <class Add>
  void add_shard(int shard, const Add& add) const {
    const auto& block = model_.block;
    const auto& team = layout_.team_of(shard);
    const auto members = static_cast<int64_t>(team.size());
    const double layers = static_cast<double>(layers_of(shard));
    const double length = static_cast<double>(config_.calibration.length);
    // Leaves and tiles are whole: the busiest rank counts.
    const double leaf_part = quotient_up(static_cast<int64_t>(leaves_.size()), members) /
                             static_cast<double>(leaves_.size());
    const bool twice = config_.propagation == Propagation::sequential && !config_.true_sequential;
    const double attention = 2 * tokens() * length * static_cast<double>(model_.shape.hidden);
    const double flops = (2 * tokens() * block_weights() + attention) * (twice ? 2 : 1);
    add(Phase::forward, layers * leaf_part * flops / (machine_.rates.forward * share_));
    for (const auto& tap : block.taps) {
      const double squared = static_cast<double>(tap.columns * tap.columns);
      add(Phase::statistics,
          layers * leaf_part * tokens() * squared / (machine_.rates.statistics * share_));
      add(Phase::factorise, layers * squared * static_cast<double>(tap.columns) /
                                (machine_.rates.factorise * share_));
      if (members > 1) {
        add(Phase::reduce, layers * 2 * 4 * squared / machine_.network);
        add(Phase::gather, layers * 4 * squared / machine_.network);
      }
    }
    std::map<int, std::pair<int64_t, double>> stacks;  // by tap: tiles, and the work of one
    for (const auto& linear : block.linears) {
      auto& [tiles, work] = stacks[linear.tap];
      tiles += (linear.rows + solve_row_tile - 1) / solve_row_tile;
      work = static_cast<double>(solve_row_tile * linear.columns * linear.columns);
    }
    for (const auto& [tap, stack] : stacks)
      add(Phase::solve, layers * quotient_up(stack.first, members) * stack.second /
                            (machine_.rates.solve * share_));
    const double block_bytes = static_cast<double>(model_.block_parameters) * element_;
    // The next layer is read while one is compressed: only the first is waited for.
    add(Phase::read, block_bytes / disk_rate);
    // Each layer once when it is committed, once in the gathered checkpoint, once in every export.
    const double copies = 2.0 + static_cast<double>(config_.exports.size());
    add(Phase::write, layers * (commit_seconds + copies * compressed_block_bytes() / disk_rate));
    if (members > 1) add(Phase::gather, layers * block_bytes / machine_.network);
    if (shard + 1 < layout_.shards() && config_.propagation == Propagation::sequential)
      add(Phase::send,
          tokens() * static_cast<double>(model_.shape.hidden) * element_ / machine_.network);
  }

  const RunConfig& config_;
  const ModelSizes& model_;
  const Layout& layout_;
  const Machine& machine_;
  double element_;
  std::vector<Leaf> leaves_;
  double share_;
};

constexpr int most_ranks = 1 << 14;

/// The fewest ranks that a copy of the model has to be spread over, in whole layers.
std::string smallest_depth(const Estimate& estimate, uint64_t limit, int64_t layers) {
  for (int64_t depth = 1; depth <= layers; ++depth)
    if (estimate.most_to_sample(depth) <= limit)
      return fmt::format("generators of depth {}", depth);
  return "generators of no depth";
}

/// The smallest team of each shard whose ranks hold what compressing needs.
std::string smallest_team(const RunConfig& config, const ModelSizes& model, const Machine& machine,
                          uint64_t limit) {
  LayoutSettings settings = config.layout;
  settings.mode = LayoutSettings::Mode::shared;
  settings.replicas = settings.team = 0;
  const int shards = std::max(1, settings.shards);
  uint64_t least = 0;
  for (int team = 1; team * shards <= most_ranks; team += std::max(1, team / 8)) {
    const Layout layout(settings, team * shards, model.layer_costs);
    least = Estimate(config, model, layout, machine, 1).least_to_compress();
    if (least <= limit) return fmt::format("a team of {} would fit", team);
    // More ranks than leaves share no further.
    if (team >= micro_batches(config.calibration) * config.calibration.micro_batch) break;
  }
  return fmt::format("no team would fit, compressing takes at least {} a rank", memory_text(least));
}

/// Names what does not fit, with the numbers and with what would.
void check_memory(const Plan& plan, const RunConfig& config, const ModelSizes& model,
                  const Machine& machine, const Estimate& estimate) {
  const auto largest = std::ranges::max_element(plan.ranks, {}, &RankPlan::memory);
  const uint64_t limit = plan.memory_limit;
  if (limit == 0 || largest->memory <= limit) return;
  const auto use = std::ranges::max_element(largest->uses, {}, &MemoryUse::total);
  fail(ExitCode::config,
       "{}: rank {} needs {}, found {}, while it {}; {}{}; more ranks, fewer sequences or "
       "a smaller micro_batch need less",
       machine.device.empty() ? "layout.memory" : machine.device, largest->rank,
       memory_text(largest->memory), memory_text(limit), use->when,
       config.calibration.source == CalibrationSource::self
           ? smallest_depth(estimate, limit, model.shape.layers) + " and "
           : "",
       smallest_team(config, model, machine, limit));
}

}  // namespace

uint64_t MemoryUse::total() const {
  uint64_t bytes = 0;
  for (const auto& item : items) bytes += item.bytes;
  return bytes;
}

ModelSizes sizes_of(const Model& model) {
  ModelSizes sizes;
  sizes.shape = model.shape();
  sizes.block = model.block(0).spec();
  sizes.layer_costs = layer_costs(model);
  for (const auto& [name, shape] : sizes.block.parameters)
    sizes.block_parameters += c10::multiply_integers(shape);
  for (const auto& [name, shape] : model.outer_parameters())
    sizes.outer_parameters += c10::multiply_integers(shape);
  return sizes;
}

Machine this_machine(int ranks_on_it) {
  Machine machine;
  cpu_set_t mask;
  CPU_ZERO(&mask);
  if (sched_getaffinity(0, sizeof mask, &mask) == 0) machine.cores = std::max(1, CPU_COUNT(&mask));
  machine.ranks = ranks_on_it;
  const long pages = sysconf(_SC_PHYS_PAGES), page = sysconf(_SC_PAGE_SIZE);
  if (pages > 0 && page > 0)
    machine.memory = static_cast<uint64_t>(pages) * static_cast<uint64_t>(page);
  return machine;
}

Plan make_plan(const RunConfig& config, const ModelSizes& model, int ranks,
               const Machine& machine) {
  const Layout layout(config.layout, ranks, model.layer_costs);
  const int threads =
      config.threads > 0 ? config.threads : std::max(1, machine.cores / machine.ranks);
  const Estimate estimate(config, model, layout, machine, threads);
  Plan plan{layout, threads, {}, {}, 0, 0, machine.device, true};
  if (machine.rates.forward > 0) plan.seconds = estimate.seconds();
  plan.total_seconds = std::accumulate(plan.seconds.begin(), plan.seconds.end(), 0.0);
  const bool asked_for = config.layout.memory > 0;
  plan.memory_limit =
      asked_for ? config.layout.memory : machine.memory / static_cast<uint64_t>(machine.ranks);
  for (const bool keeps : {true, false}) {
    plan.keeps_states = keeps;
    plan.ranks.clear();
    for (int rank = 0; rank < ranks; ++rank) plan.ranks.push_back(estimate.rank(rank, keeps));
    const auto largest = std::ranges::max_element(plan.ranks, {}, &RankPlan::memory);
    if (plan.memory_limit == 0 || largest->memory <= plan.memory_limit) break;
  }
  if (asked_for || !machine.device.empty()) check_memory(plan, config, model, machine, estimate);
  return plan;
}

}  // namespace selfcal
