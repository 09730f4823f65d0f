// What a rank holds on its GPU, and beside it in the host's memory. By formula: none of it has been
// held against a run on a GPU.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "pipeline/host_solves.hpp"
#include "pipeline/memory_model.hpp"
#include "stages/calibrate/library_sums.hpp"
#include "stages/solve/device_feedback.hpp"

namespace selfcal {
namespace {

// Taken, not measured: the driver's part, kernels, workspaces of cuBLAS and cuSOLVER, NCCL's
// buffers; and what CUDA's libraries take of the host.
constexpr uint64_t context_bytes = uint64_t{1} << 30, program_bytes = uint64_t{1} << 30;

class DeviceMemory : public MemoryModel {
 public:
  DeviceMemory(const RunConfig& config, const ModelSizes& model, int sharing)
      : model_(model), parts_(config, model, sharing) {}

  MemoryUse sampling(int run, int depth, int64_t at_once) const override {
    MemoryUse use{"samples", {context()}};
    use.items.push_back(
        {depth == 1 ? "weights of the whole model"
                    : fmt::format("weights of {} layers", parts_.sampled_layers(run, depth)),
         whole_bytes(parts_.sampled_weights(run, depth))});
    use.items.push_back(
        {caches_of(depth, at_once), whole_bytes(parts_.caches(run, depth, at_once))});
    if (run == depth - 1)
      use.items.push_back({"logits of a step", whole_bytes(parts_.logits(at_once))});
    return use;
  }

  MemoryUse embedding(int64_t sequences) const override {
    return {"reads the embeddings",
            {context(),
             {"words of the leaves", whole_bytes(parts_.words(sequences))},
             {"hidden states of the leaves", whole_bytes(parts_.hidden(sequences)), true}}};
  }

  MemoryUse scoring(double tokens) const override { return parts_.scoring(context(), tokens); }

  void add_edges(MemoryUse& use, const ShardEdges& edges) const override {
    if (edges.waiting > 0)
      use.items.push_back(
          {"outputs of the job before", whole_bytes(parts_.hidden(edges.waiting)), true});
    if (edges.reads_blocks)
      use.items.push_back({"weights of a block", whole_bytes(parts_.block())});
    if (edges.forwarded > 0)
      use.items.push_back({"leaves for later shards",
                           whole_bytes(parts_.hidden(edges.forwarded) + parts_.passing_leaf())});
  }

  std::vector<MemoryUse> compressing(const ShardPart& part) const override {
    const int64_t sequences = part.sequences;
    const auto columns = static_cast<double>(parts_.widest_tap()), squared = columns * columns;
    const auto block_rows = static_cast<double>(LibrarySums::rows_of_a_block);
    const MemoryItem hessian{"Hessian: float32", whole_bytes(4 * squared)};
    std::vector<MemoryItem> always{
        context(),
        // The next block waits in the host's memory, unless it is on its way to a team.
        {part.alone ? "weights of a block" : "weights of a block, and of the next",
         whole_bytes((part.alone ? 1 : 2) * parts_.block())},
        {"hidden states of the leaves", whole_bytes(parts_.hidden(sequences)), true},
        {part.keeps_states ? "inputs of a stage, kept" : "inputs of a stage, computed again",
         whole_bytes(part.keeps_states ? parts_.states(sequences) : 0), true}};
    const double waiting = parts_.kept_hessians() + parts_.shared_factors();
    if (waiting > 0)
      always.push_back(
          {"Hessians of the block's other inputs, shared factors", whole_bytes(waiting)});
    const auto at = [&](const char* when, const std::vector<MemoryItem>& items) {
      MemoryUse use{when, always};
      use.items.insert(use.items.end(), items.begin(), items.end());
      return use;
    };
    return {at("measures", {{"one leaf on its way", whole_bytes(parts_.passing_leaf())},
                            {"Hessian: sums as integers, upper half",
                             whole_bytes(4 * squared + 4 * block_rows * columns)},
                            {"products of a leaf, float32 to integers",
                             whole_bytes(28 * std::min(block_rows, columns) * columns +
                                         4 * columns * parts_.leaf_tokens())}}),
            at("factorises", {hessian, {"factor, and room to find it", whole_bytes(12 * squared)}}),
            at("solves", {hessian,
                          {"factor", whole_bytes(4 * squared)},
                          {"rows on their way", whole_bytes(rows_on_their_way())}})};
  }

 private:
  static MemoryItem context() { return {"CUDA, libraries, workspaces (taken)", context_bytes}; }

  /// Of the matrix that needs most.
  double rows_on_their_way() const {
    double most = 0;
    for (const auto& linear : model_.block.linears)
      most = std::max(most, device_solve_bytes(linear.rows, linear.columns));
    return most;
  }

  const ModelSizes& model_;
  MemoryParts parts_;
};

class MemoryBesideDevice : public MemoryModel {
 public:
  MemoryBesideDevice(const RunConfig& config, const ModelSizes& model)
      : model_(model),
        parts_(config, model),
        host_solves_some_(!host_solves(config, model.linears).empty()) {}

  MemoryUse sampling(int run, int depth, int64_t at_once) const override {
    const double most = std::max(parts_.block(), parts_.outer_of_run(run, depth));
    MemoryUse use{"samples", {program(), {"weights of a layer, on their way", whole_bytes(most)}}};
    if (run == depth - 1)
      use.items.push_back(
          {"logits of a step, and their order", whole_bytes(2 * parts_.logits(at_once))});
    return use;
  }

  MemoryUse embedding(int64_t sequences) const override {
    return {"reads the embeddings",
            {program(),
             {"words of the leaves, and a run of all",
              whole_bytes(parts_.words(sequences) + parts_.run_of_words())}}};
  }

  MemoryUse scoring(double) const override {
    return {"evaluates",
            {program(),
             {"weights of a block, and of the next, or the head, on their way",
              whole_bytes(std::max(2 * parts_.block(), parts_.head()))}}};
  }

  /// Leaves come and go through the host.
  void add_edges(MemoryUse& use, const ShardEdges& edges) const override {
    const auto add = [&](const char* what, double bytes, bool shared_by_team) {
      if (bytes > 0) use.items.push_back({what, whole_bytes(bytes), shared_by_team});
    };
    add("hidden states of the leaves, received", parts_.hidden(edges.received), true);
    add("outputs of the job before, on their way", parts_.hidden(edges.waiting), true);
    add("leaves sent to later shards", parts_.leaves_in_flight(edges.forwarded), false);
    if (edges.reads_blocks) add("weights of a block, on their way", parts_.block(), false);
  }

  std::vector<MemoryUse> compressing(const ShardPart& part) const override {
    const double squared = std::pow(static_cast<double>(parts_.widest_tap()), 2);
    MemoryUse use{"compresses",
                  {program(),
                   {"weights of a block, and of the next",
                    whole_bytes(parts_.block_in_work() + parts_.block())},
                   {"codes or masks of the block", whole_bytes(parts_.codes())},
                   {"solved rows",
                    whole_bytes(parts_.largest_problem() * (4.0 + model_.element_bytes() + 1.0))}}};
    if (part.leads)
      use.items.push_back({"the layer that is being written", whole_bytes(parts_.written_layer())});
    if (host_solves_some_)
      use.items.push_back(
          {"Hessian and factor of what the host solves", whole_bytes(12 * squared)});
    return {use};
  }

 private:
  static MemoryItem program() { return {"program and libraries (taken)", program_bytes}; }

  const ModelSizes& model_;
  MemoryParts parts_;
  bool host_solves_some_;
};

}  // namespace

std::unique_ptr<MemoryModel> device_memory(const RunConfig& config, const ModelSizes& model,
                                           int sharing) {
  return std::make_unique<DeviceMemory>(config, model, sharing);
}

std::unique_ptr<MemoryModel> memory_beside_device(const RunConfig& config,
                                                  const ModelSizes& model) {
  return std::make_unique<MemoryBesideDevice>(config, model);
}

}  // namespace selfcal
