#include "pipeline/memory_model.hpp"

#include <fmt/format.h>

#include <algorithm>

#include "pipeline/leaves.hpp"

namespace selfcal {
namespace {

constexpr uint64_t program_bytes = uint64_t{128} << 20;  // libraries and their start, measured
// What the allocator keeps between tensors that come and go within a layer, as a share of them;
// measured. Larger ones have pages of their own, which go back at once, and after each layer all
// freed memory does (return_freed_memory()).
constexpr double gap_share = 0.2;
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
  const double passing =
      sequences == 0 ? 0.0
                     : leaf * element * static_cast<double>(2 * widest_output + 2 * widest_tap);
  const double solved = largest_problem * (4.0 + element + 1.0);
  // The layer before, on its way to its file: weights and codes, and the library's own of them.
  const double written = leads ? 2 * (block_bytes + model_.linear_weights() / 2) : 0.0;
  double gaps = 0;
  for (const double bytes : {blocks, passing, 5 * 4.0 * squared, solved})
    gaps += gap_share * std::min(bytes, largest_gap);
  return {"compresses",
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
           {"the layer that is being written", whole_bytes(written)},
           {"gaps between tensors", whole_bytes(gaps)}}};
}

}  // namespace selfcal
