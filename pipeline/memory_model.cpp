#include "pipeline/memory_model.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <set>

#include "pipeline/leaves.hpp"

namespace selfcal {
namespace {

constexpr uint64_t program_bytes = uint64_t{120} << 20;  // libraries and their start, measured
// What the allocator keeps between tensors that come and go, as a share of them; measured. Larger
// ones have pages of their own, which go back at once.
constexpr double gap_share = 1.3;
constexpr double largest_gap = 64 << 20;

uint64_t whole_bytes(double bytes) { return static_cast<uint64_t>(std::max(0.0, bytes)); }

}  // namespace

uint64_t MemoryUse::total() const {
  uint64_t bytes = 0;
  for (const auto& item : items) bytes += item.bytes;
  return bytes;
}

std::string memory_text(uint64_t bytes) {
  const double mebibytes = static_cast<double>(bytes) / 1048576.0;
  if (mebibytes >= 10240) return fmt::format("{:.1f} GiB", mebibytes / 1024);
  return mebibytes >= 10 ? fmt::format("{:.0f} MiB", mebibytes)
                         : fmt::format("{:.1f} MiB", mebibytes);
}

MemoryUse MemoryModel::sampling(int run, int depth) const {
  const auto& shape = model_.shape;
  const auto& calibration = config_.calibration;
  const auto first = decode_runs(model_, depth);
  const int64_t layers = first[static_cast<size_t>(run) + 1] - first[static_cast<size_t>(run)];
  const bool outer = run == 0 || run == depth - 1;
  const double weights = static_cast<double>(layers * model_.block_parameters +
                                             (outer ? model_.outer_parameters : 0)) *
                         model_.element_bytes();
  // As many micro-batches are on their way as there are ranks in the copy.
  const double cache =
      2.0 *
      static_cast<double>(depth * layers * calibration.micro_batch * calibration.length *
                          shape.key_value_heads * shape.head_dim) *
      model_.element_bytes();
  MemoryUse use{"samples", {{"program and libraries", program_bytes}}};
  const auto add = [&](std::string what, double bytes) {
    use.items.push_back({std::move(what), whole_bytes(bytes)});
  };
  if (depth == 1) {
    add("weights of the whole model", weights);
    add("keys and values of a micro-batch", cache);
  } else {
    add(fmt::format("weights of {} layers", layers), weights);
    add(fmt::format("keys and values of {} micro-batches", depth), cache);
  }
  if (run == depth - 1)
    add("logits of a step, and their order",
        8.0 * static_cast<double>(calibration.micro_batch * shape.vocabulary));
  return use;
}

uint64_t MemoryModel::most_to_sample(int depth) const {
  uint64_t most = 0;
  for (int run = 0; run < depth; ++run) most = std::max(most, sampling(run, depth).total());
  return most;
}

double MemoryModel::hidden_bytes(int64_t sequences) const {
  return static_cast<double>(sequences * config_.calibration.length * model_.shape.hidden) *
         model_.element_bytes();
}

MemoryUse MemoryModel::embedding(int64_t sequences) const {
  return {"reads the embeddings",
          {{"program and libraries", program_bytes},
           {"embeddings and head",
            whole_bytes(static_cast<double>(model_.outer_parameters) * model_.element_bytes())},
           {"hidden states of the leaves", whole_bytes(hidden_bytes(sequences))}}};
}

/// Whether a layer may have one of these methods.
bool MemoryModel::uses(std::initializer_list<MethodName> methods) const {
  const auto is_one = [&](MethodName name) {
    return std::ranges::find(methods, name) != methods.end();
  };
  return is_one(config_.method.name) ||
         std::ranges::any_of(config_.overrides, [&](const Override& entry) {
           return entry.method && is_one(*entry.method);
         });
}

/// Entries of the Hessians that wait for their stage while the widest is in work: AWQ takes them
/// from the block before it is rounded, jobs that share statistics from a block that is measured
/// whole.
double MemoryModel::kept_hessians() const {
  const bool scaled = uses({MethodName::awq});
  if (!scaled && sharing_ == 1) return 0;
  const bool replaced_at_once =
      config_.propagation == Propagation::sequential && config_.true_sequential;
  std::set<int> taps;
  for (const auto& linear : model_.block.linears) {
    const bool is_scaled = std::ranges::any_of(model_.block.scale_pairs, [&](const auto& pair) {
      return pair.consumers.front() == linear.name;
    });
    if (!replaced_at_once || is_scaled) taps.insert(linear.tap);
  }
  double all = 0, widest = 0;
  for (const int tap : taps) {
    const auto columns = static_cast<double>(model_.block.taps[static_cast<size_t>(tap)].columns);
    all += columns * columns;
    widest = std::max(widest, columns * columns);
  }
  return all - widest;
}

/// Of AWQ's search by the outputs of modules: the weights of a candidate, its outputs and the dense
/// ones of a leaf.
double MemoryModel::tried_module(double leaf_tokens) const {
  if (!uses({MethodName::awq}) || config_.method.scale_loss == ScaleLoss::linear) return 0;
  double most = 0;
  for (const auto& pair : model_.block.scale_pairs) {
    double weights = 0;
    for (const auto& linear : model_.block.linears)
      if (std::ranges::find(pair.consumers, linear.name) != pair.consumers.end())
        weights += static_cast<double>(linear.rows * linear.columns);
    if (pair.consumers.size() > 1) most = std::max(most, weights);
  }
  return (most + 2 * leaf_tokens * static_cast<double>(model_.shape.hidden)) *
         model_.element_bytes();
}

MemoryUse MemoryModel::compressing(int64_t sequences, bool leads, bool keeps_states) const {
  const auto& block = model_.block;
  const auto& shape = model_.shape;
  const double element = model_.element_bytes();
  const double row_tokens = static_cast<double>(sequences * config_.calibration.length);
  const double leaf =
      static_cast<double>(leaf_rows(config_.calibration.length) * config_.calibration.length);
  int64_t widest_tap = 0, widest_output = 0;
  std::vector<int64_t> outputs(static_cast<size_t>(block.stages), 0);
  double largest_problem = 0;
  for (const auto& linear : block.linears) {
    outputs[static_cast<size_t>(linear.stage)] += linear.rows;
    largest_problem = std::max(largest_problem, static_cast<double>(linear.rows * linear.columns));
  }
  for (const auto& tap : block.taps) widest_tap = std::max(widest_tap, tap.columns);
  for (const int64_t output : outputs) widest_output = std::max(widest_output, output);
  const double squared = static_cast<double>(widest_tap) * static_cast<double>(widest_tap);
  const double block_bytes = static_cast<double>(model_.block_parameters) * element;
  // The dense weights, the compressed ones that replace them, and, for the rank that reads, the
  // next layer's.
  const double blocks = (leads ? 3 : 2) * block_bytes;
  const double states =
      keeps_states ? row_tokens * element * static_cast<double>(shape.hidden + widest_tap) : 0.0;
  const double passing = leaf * element * static_cast<double>(2 * widest_output + 2 * widest_tap);
  const double solved = largest_problem * (4.0 + element + 1.0);
  const double kept = 4.0 * kept_hessians(), tried = tried_module(leaf);
  const double factors = sharing_ > 1 ? kept + 4.0 * squared : 0;
  double gaps = 0;
  for (const double bytes : {blocks, passing, 5 * 4.0 * squared, solved})
    gaps += gap_share * std::min(bytes, largest_gap);
  MemoryUse use{"compresses",
                {{"program and libraries", program_bytes},
                 {"weights of a block", whole_bytes(blocks)},
                 {"hidden states of the leaves", whole_bytes(hidden_bytes(sequences))},
                 {keeps_states ? "inputs of a stage, kept" : "inputs of a stage, computed again",
                  whole_bytes(states)},
                 {"one leaf on its way", whole_bytes(passing)},
                 {"Hessian: sums as integers, upper half", whole_bytes(4.0 * squared)},
                 {"Hessian: float32", whole_bytes(4.0 * squared)},
                 {"factor, and room to find it", whole_bytes(3 * 4.0 * squared)},
                 {"solved rows", whole_bytes(solved)},
                 {"gaps between tensors", whole_bytes(gaps)}}};
  const auto add = [&](const char* what, double bytes) {
    if (bytes > 0) use.items.push_back({what, whole_bytes(bytes)});
  };
  add("Hessians of the block's other inputs", kept);
  add("factors that jobs share", factors);
  add("a module that scales are tried on", tried);
  return use;
}

}  // namespace selfcal
