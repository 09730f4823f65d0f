// What a rank holds at one time, item by item, by formula.
#pragma once
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "pipeline/config.hpp"
#include "pipeline/sizes.hpp"

namespace selfcal {

struct MemoryItem {
  std::string what;
  uint64_t bytes = 0;
  bool shared_by_team = false;  // falls as 1/team; else it stays
};

/// What is in memory at one time.
struct MemoryUse {
  std::string when;  // "samples"
  std::vector<MemoryItem> items;
  uint64_t total() const;
};

/// Sequences whose hidden states a rank holds for other shards, or from them.
struct ShardEdges {
  int64_t received = 0;       // of its own leaves, while it still samples (dense propagation)
  int64_t forwarded = 0;      // at a time, on their way to later shards (dense)
  int64_t waiting = 0;        // of the job before, until the next shard takes them (a wavefront)
  bool reads_blocks = false;  // what it forwards with is not in memory already
};

/// What a rank does for its shard.
struct ShardPart {
  int64_t sequences = 0;     // of its leaves
  bool leads = false;        // it reads and writes for its team
  bool alone = false;        // it is all of its team
  bool keeps_states = true;  // the inputs of a stage are held while they are needed
};

/// One kind of memory of a rank.
class MemoryModel {
 public:
  virtual ~MemoryModel() = default;
  /// Of the rank that holds run `run` of the `depth` runs of layers of a copy, with `at_once`
  /// micro-batches in a step.
  virtual MemoryUse sampling(int run, int depth, int64_t at_once) const = 0;
  /// Of a rank of the first shard with leaves of so many sequences.
  virtual MemoryUse embedding(int64_t sequences) const = 0;
  /// At the times that differ.
  virtual std::vector<MemoryUse> compressing(const ShardPart& part) const = 0;
  /// While text of so many tokens is scored.
  virtual MemoryUse scoring(double tokens) const = 0;
  /// What of the edges is in this memory.
  virtual void add_edges(MemoryUse& use, const ShardEdges& edges) const = 0;
  /// Of the rank that needs most when a copy is spread over `depth`.
  uint64_t most_to_sample(int depth) const;
};

// All borrow both. `sharing`: jobs that have one forward and its statistics with this one, itself
// among them.
/// The host's memory where that is all there is.
std::unique_ptr<MemoryModel> host_memory(const RunConfig& config, const ModelSizes& model,
                                         int sharing);
/// A GPU's, and the host's beside it (device_memory_model.cpp).
std::unique_ptr<MemoryModel> device_memory(const RunConfig& config, const ModelSizes& model,
                                           int sharing);
std::unique_ptr<MemoryModel> memory_beside_device(const RunConfig& config, const ModelSizes& model);

/// Bytes of what both kinds of memory have items of.
struct MemoryParts {
  MemoryParts(const RunConfig& config, const ModelSizes& model, int sharing = 1)
      : config_(config), model_(model), sharing_(sharing) {}

  int64_t sampled_layers(int run, int depth) const;
  double sampled_weights(int run, int depth) const;
  double caches(int run, int depth, int64_t at_once) const;
  double logits(int64_t at_once) const;           // float32, of a step
  double outer_of_run(int run, int depth) const;  // embeddings and head, where a copy has them
  double head() const;
  double embeddings() const;
  double run_of_words() const;            // of the table, that is read at a time
  double words(int64_t sequences) const;  // those that occur, at most
  double block() const;
  double block_in_work() const;  // with its compressed weights, unless they replace the dense ones
  double written_layer() const;  // the one before, on its way to its file
  double codes() const;          // or masks, of a compressed block
  double hidden(int64_t sequences) const;
  double hidden_of(double tokens) const;
  double states(int64_t sequences) const;  // the inputs of a stage, kept
  double passing_leaf() const;
  double leaves_in_flight(int64_t sequences) const;  // of so many that are sent
  double leaf_tokens() const;
  int64_t widest_tap() const;
  int64_t widest_tap_before_last_stage() const;
  /// Whether a block's compressed weights replace its dense ones stage by stage.
  bool replaces_by_stages() const;
  double largest_problem() const;  // weights
  double kept_hessians() const;    // those that wait while the widest is in work
  /// Of the inputs that AWQ scales, beside those that jobs share.
  double scaled_hessians() const;
  double shared_factors() const;
  /// Of AWQ's search by the outputs of modules: the weights of a candidate, its outputs and the
  /// dense ones of a leaf.
  double tried_module() const;
  /// Beside `program`, while text of so many tokens is scored.
  MemoryUse scoring(MemoryItem program, double tokens) const;

 private:
  int64_t widest_tap_of(const std::function<bool(const Linear&)>& counts) const;
  bool uses_awq() const;
  bool replaces_at_once() const;

  const RunConfig& config_;
  const ModelSizes& model_;
  int sharing_;
};

/// Rounds down to whole bytes, of which there are none below 0.
uint64_t whole_bytes(double bytes);

/// "keys and values of 4 micro-batches".
std::string caches_of(int depth, int64_t at_once);

/// "412 MiB".
std::string memory_text(uint64_t bytes);

}  // namespace selfcal
