#include "pipeline/memory_model.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <set>

#include "base/freed_memory.hpp"
#include "pipeline/boundary.hpp"
#include "pipeline/embedding.hpp"
#include "pipeline/leaves.hpp"
#include "stages/evaluate/streamed_forward.hpp"

namespace selfcal {
namespace {

constexpr uint64_t program_bytes = uint64_t{148} << 20;  // libraries and their start, measured

class HostMemory : public MemoryModel {
 public:
  HostMemory(const RunConfig& config, const ModelSizes& model, int sharing)
      : model_(model), parts_(config, model, sharing) {}

  MemoryUse sampling(int run, int depth, int64_t at_once) const override {
    MemoryUse use{"samples", {{"program and libraries", program_bytes}}};
    const auto add = [&](std::string what, double bytes) {
      use.items.push_back({std::move(what), whole_bytes(bytes)});
    };
    if (depth == 1) {
      add("weights of the whole model", parts_.sampled_weights(run, depth));
    } else {
      add(fmt::format("weights of {} layers", parts_.sampled_layers(run, depth)),
          parts_.sampled_weights(run, depth));
    }
    add(caches_of(depth, at_once), parts_.caches(run, depth, at_once));
    if (run == depth - 1) add("logits of a step, and their order", 2 * parts_.logits(at_once));
    return use;
  }

  MemoryUse embedding(int64_t sequences) const override {
    return {"reads the embeddings",
            {{"program and libraries", program_bytes},
             {"words of the leaves, and a run of all",
              whole_bytes(parts_.words(sequences) + parts_.run_of_words())},
             {"hidden states of the leaves", whole_bytes(parts_.hidden(sequences)), true}}};
  }

  MemoryUse scoring(double tokens) const override {
    return parts_.scoring({"program and libraries", program_bytes}, tokens);
  }

  void add_edges(MemoryUse& use, const ShardEdges& edges) const override {
    const auto add = [&](const char* what, double bytes, bool shared_by_team = false) {
      if (bytes > 0) use.items.push_back({what, whole_bytes(bytes), shared_by_team});
    };
    add("hidden states of the leaves, received", parts_.hidden(edges.received), true);
    add("outputs of the job before", parts_.hidden(edges.waiting), true);
    if (edges.reads_blocks) add("weights of a block", parts_.block());
    if (edges.forwarded > 0)
      add("leaves for later shards", parts_.hidden(edges.forwarded) +
                                         parts_.leaves_in_flight(edges.forwarded) +
                                         parts_.passing_leaf());
  }

  std::vector<MemoryUse> compressing(const ShardPart& part) const override {
    const int64_t sequences = part.sequences;
    const double states = part.keeps_states ? parts_.states(sequences) : 0.0;
    std::vector<MemoryItem> always{
        {"program and libraries", program_bytes},
        // The next block is read or received meanwhile.
        {"weights of a block, and of the next",
         whole_bytes(parts_.block_in_work() + parts_.block())},
        {"codes or masks of the block", whole_bytes(parts_.codes())},
        {"hidden states of the leaves", whole_bytes(parts_.hidden(sequences)), true},
        {part.keeps_states ? "inputs of a stage, kept" : "inputs of a stage, computed again",
         whole_bytes(states), true}};
    const auto add = [&](const char* what, double bytes) {
      if (bytes > 0) always.push_back({what, whole_bytes(bytes)});
    };
    add("Hessians of the block's other inputs", parts_.kept_hessians());
    add("Hessians behind a job's own scales", parts_.scaled_hessians());
    add("factors that jobs share", parts_.shared_factors());
    add("a module that scales are tried on", parts_.tried_module());
    // Leaves leave gaps that leaves of another width do not fit, and so do a layer read and one
    // written, in the memory of the threads that do it. What is kept is then mostly less than may
    // be.
    const double freed = parts_.hidden(sequences) + states +
                         (part.leads ? 2 * (parts_.block() + parts_.written_layer()) : 0.0);
    constexpr double usual_share = 0.75;  // measured
    add("freed memory that is kept", std::min(freed, usual_share * FreedMemory::most_kept));

    // The layer before is in its file when the last stage begins, which has the widest input; where
    // weights are not replaced by then, all solves come after that.
    const MemoryItem written{"the layer that is being written",
                             whole_bytes(parts_.written_layer())};
    const bool by_stages = parts_.replaces_by_stages();
    if (part.leads && !by_stages) always.push_back(written);
    std::vector<MemoryUse> moments = at_width(parts_.widest_tap(), sequences);
    if (part.leads && by_stages)
      for (auto& moment : at_width(parts_.widest_tap_before_last_stage(), sequences)) {
        moment.when += " before the last stage";
        moment.items.push_back(written);
        moments.push_back(std::move(moment));
      }
    for (auto& moment : moments)
      moment.items.insert(moment.items.begin(), always.begin(), always.end());
    return moments;
  }

 private:
  /// What an input so wide takes.
  std::vector<MemoryUse> at_width(int64_t columns, int64_t sequences) const {
    const double square = 4 * std::pow(static_cast<double>(columns), 2);
    // Panels of the factor, and of the Hessian that errors are measured with.
    const double panels = square * (model_.element_bytes() < 4 ? 0.5 : 0.75);
    const MemoryItem hessian{"Hessian: float32", whole_bytes(square)};
    // The Cholesky factor, a half as packed panels, and U.
    const double factor_and_room = 1.55 * square;
    return {
        {"measures",
         {{"one leaf on its way", whole_bytes(sequences == 0 ? 0 : parts_.passing_leaf())},
          {"Hessian: sums as integers, upper half", whole_bytes(square)},
          hessian}},
        {"factorises", {hessian, {"factor, and room to find it", whole_bytes(factor_and_room)}}},
        {"solves",
         {hessian,
          {"factor, and panels", whole_bytes(square + panels)},
          {"solved rows", whole_bytes(parts_.largest_problem() * (model_.element_bytes() + 1))}}}};
  }

  const ModelSizes& model_;
  MemoryParts parts_;
};

}  // namespace

std::unique_ptr<MemoryModel> host_memory(const RunConfig& config, const ModelSizes& model,
                                         int sharing) {
  return std::make_unique<HostMemory>(config, model, sharing);
}

uint64_t whole_bytes(double bytes) { return static_cast<uint64_t>(std::max(0.0, bytes)); }

uint64_t MemoryUse::total() const {
  uint64_t bytes = 0;
  for (const auto& item : items) bytes += item.bytes;
  return bytes;
}

std::string caches_of(int depth, int64_t at_once) {
  const int64_t batches = depth * at_once;
  return batches == 1 ? "keys and values of a micro-batch"
                      : fmt::format("keys and values of {} micro-batches", batches);
}

std::string memory_text(uint64_t bytes) {
  const double mebibytes = static_cast<double>(bytes) / 1048576.0;
  if (mebibytes >= 10240) return fmt::format("{:.1f} GiB", mebibytes / 1024);
  return mebibytes >= 10 ? fmt::format("{:.0f} MiB", mebibytes)
                         : fmt::format("{:.1f} MiB", mebibytes);
}

uint64_t MemoryModel::most_to_sample(int depth) const {
  uint64_t most = 0;
  for (int run = 0; run < depth; ++run) most = std::max(most, sampling(run, depth, 1).total());
  return most;
}

int64_t MemoryParts::sampled_layers(int run, int depth) const {
  const auto first = decode_runs(model_, depth);
  return first[static_cast<size_t>(run) + 1] - first[static_cast<size_t>(run)];
}

double MemoryParts::sampled_weights(int run, int depth) const {
  return static_cast<double>(sampled_layers(run, depth)) * block() + outer_of_run(run, depth);
}

/// As many batches are on their way as there are ranks in the copy.
double MemoryParts::caches(int run, int depth, int64_t at_once) const {
  const auto& calibration = config_.calibration;
  return 2.0 *
         static_cast<double>(depth * at_once * sampled_layers(run, depth) *
                             calibration.micro_batch * calibration.length *
                             model_.shape.key_value_heads * model_.shape.head_dim) *
         model_.element_bytes();
}

/// A file is built in memory, and copied to be written; weights that have codes are dropped before.
double MemoryParts::written_layer() const {
  const double stored = settle(config_.method).quantises()
                            ? codes()
                            : model_.linear_weights() * model_.element_bytes();
  return 3 * stored + largest_problem() * model_.element_bytes();
}

double MemoryParts::codes() const {
  const MethodSettings method = settle(config_.method);
  return model_.linear_weights() * (method.quantises() ? method.bits : 1) / 8;
}

double MemoryParts::logits(int64_t at_once) const {
  return 4.0 *
         static_cast<double>(at_once * config_.calibration.micro_batch * model_.shape.vocabulary);
}

double MemoryParts::outer_of_run(int run, int depth) const {
  const int64_t parameters = depth == 1         ? model_.outer_parameters
                             : run == 0         ? model_.embedding_parameters
                             : run == depth - 1 ? model_.head_parameters
                                                : 0;
  return static_cast<double>(parameters) * model_.element_bytes();
}

double MemoryParts::head() const {
  return static_cast<double>(model_.head_parameters) * model_.element_bytes();
}

double MemoryParts::embeddings() const {
  return static_cast<double>(model_.embedding_parameters) * model_.element_bytes();
}

double MemoryParts::run_of_words() const {
  return std::min(embeddings(), static_cast<double>(words_at_once));
}

double MemoryParts::words(int64_t sequences) const {
  return std::min(embeddings(), hidden(sequences));
}

double MemoryParts::block() const {
  return static_cast<double>(model_.block_parameters) * model_.element_bytes();
}

MemoryUse MemoryParts::scoring(MemoryItem program, double tokens) const {
  const double logits = 4.0 * static_cast<double>(tokens_of_logits * model_.shape.vocabulary);
  return {"evaluates",
          {std::move(program),
           {"weights of a block, and of the next, or the head",
            whole_bytes(std::max(2 * block(), head()))},
           {"hidden states of the text", whole_bytes(hidden_of(tokens))},
           {"one leaf on its way, or its logits", whole_bytes(std::max(passing_leaf(), logits))}}};
}

double MemoryParts::hidden(int64_t sequences) const {
  return hidden_of(static_cast<double>(sequences * config_.calibration.length));
}

double MemoryParts::hidden_of(double tokens) const {
  return tokens * static_cast<double>(model_.shape.hidden) * model_.element_bytes();
}

double MemoryParts::states(int64_t sequences) const {
  return static_cast<double>(sequences * config_.calibration.length) * model_.element_bytes() *
         static_cast<double>(model_.shape.hidden + widest_tap());
}

double MemoryParts::leaf_tokens() const {
  const int64_t length = config_.calibration.length;
  return static_cast<double>(leaf_rows(length) * length);
}

double MemoryParts::passing_leaf() const {
  std::vector<int64_t> outputs(static_cast<size_t>(model_.block.stages), 0);
  for (const auto& linear : model_.block.linears)
    outputs[static_cast<size_t>(linear.stage)] += linear.rows;
  const int64_t widest_output = outputs.empty() ? 0 : std::ranges::max(outputs);
  return leaf_tokens() * model_.element_bytes() *
         static_cast<double>(2 * widest_output + 2 * widest_tap());
}

double MemoryParts::leaves_in_flight(int64_t sequences) const {
  const auto at_most =
      static_cast<int64_t>(BoundaryOutbox::usual_limit) * leaf_rows(config_.calibration.length);
  return hidden(std::min(sequences, at_most));
}

int64_t MemoryParts::widest_tap_of(const std::function<bool(const Linear&)>& counts) const {
  int64_t widest = 0;
  for (const auto& linear : model_.block.linears)
    if (counts(linear)) widest = std::max(widest, linear.columns);
  return widest;
}

int64_t MemoryParts::widest_tap() const {
  return widest_tap_of([](const Linear&) { return true; });
}

int64_t MemoryParts::widest_tap_before_last_stage() const {
  return widest_tap_of(
      [&](const Linear& linear) { return linear.stage + 1 < model_.block.stages; });
}

bool MemoryParts::replaces_at_once() const {
  return config_.propagation == Propagation::sequential && config_.true_sequential;
}

bool MemoryParts::replaces_by_stages() const {
  return !uses_awq() && sharing_ == 1 && replaces_at_once();
}

double MemoryParts::block_in_work() const { return (replaces_by_stages() ? 1 : 2) * block(); }

double MemoryParts::largest_problem() const {
  double largest = 0;
  for (const auto& linear : model_.block.linears)
    largest = std::max(largest, static_cast<double>(linear.rows * linear.columns));
  return largest;
}

bool MemoryParts::uses_awq() const {
  return config_.method.name == MethodName::awq ||
         std::ranges::any_of(config_.overrides,
                             [](const Override& entry) { return entry.method == MethodName::awq; });
}

/// AWQ takes them from the block before it is rounded; a block whose layers are not replaced stage
/// by stage is measured whole.
double MemoryParts::kept_hessians() const {
  if (!uses_awq() && replaces_at_once()) return 0;
  std::set<int> taps;
  for (const auto& linear : model_.block.linears) {
    const bool is_scaled = std::ranges::any_of(model_.block.scale_pairs, [&](const auto& pair) {
      return pair.consumers.front() == linear.name;
    });
    if (!replaces_at_once() || is_scaled) taps.insert(linear.tap);
  }
  double all = 0, widest = 0;
  for (const int tap : taps) {
    const auto columns = static_cast<double>(model_.block.taps[static_cast<size_t>(tap)].columns);
    all += columns * columns;
    widest = std::max(widest, columns * columns);
  }
  return 4.0 * (all - widest);
}

double MemoryParts::scaled_hessians() const {
  if (!uses_awq() || sharing_ == 1) return 0;
  double all = 0;
  for (const auto& pair : model_.block.scale_pairs)
    for (const auto& linear : model_.block.linears)
      if (linear.name == pair.consumers.front())
        all += static_cast<double>(linear.columns * linear.columns);
  return 4.0 * all;
}

double MemoryParts::shared_factors() const {
  const auto widest = static_cast<double>(widest_tap());
  return sharing_ > 1 ? kept_hessians() + 4.0 * widest * widest : 0;
}

double MemoryParts::tried_module() const {
  if (!uses_awq() || config_.method.scale_loss == ScaleLoss::linear) return 0;
  double most = 0;
  for (const auto& pair : model_.block.scale_pairs) {
    double weights = 0;
    for (const auto& linear : model_.block.linears)
      if (std::ranges::find(pair.consumers, linear.name) != pair.consumers.end())
        weights += static_cast<double>(linear.rows * linear.columns);
    if (pair.consumers.size() > 1) most = std::max(most, weights);
  }
  return (most + 2 * leaf_tokens() * static_cast<double>(model_.shape.hidden)) *
         model_.element_bytes();
}

}  // namespace selfcal
