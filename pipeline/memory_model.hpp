// What a rank holds at one time, item by item, by formula.
#pragma once
#include <initializer_list>
#include <string>
#include <vector>

#include "pipeline/config.hpp"
#include "pipeline/sizes.hpp"

namespace selfcal {

struct MemoryItem {
  std::string what;
  uint64_t bytes = 0;
};

/// What is in memory at one time.
struct MemoryUse {
  std::string when;  // "samples"
  std::vector<MemoryItem> items;
  uint64_t total() const;
};

class MemoryModel {
 public:
  /// Borrows both. `sharing`: jobs that have one forward and its statistics with this one, itself
  /// among them.
  MemoryModel(const RunConfig& config, const ModelSizes& model, int sharing = 1)
      : config_(config), model_(model), sharing_(sharing) {}

  /// Of the rank that holds run `run` of the `depth` runs of layers of a copy.
  MemoryUse sampling(int run, int depth) const;
  /// Of the rank that needs most when a copy is spread over `depth`.
  uint64_t most_to_sample(int depth) const;
  /// Of a rank of the first shard with leaves of so many sequences.
  MemoryUse embedding(int64_t sequences) const;
  /// `leads`: it reads and writes for its team. `keeps_states`: the inputs of a stage are held
  /// while they are needed.
  MemoryUse compressing(int64_t sequences, bool leads, bool keeps_states) const;

 private:
  double hidden_bytes(int64_t sequences) const;
  double kept_hessians() const;
  double tried_module(double leaf_tokens) const;
  bool uses(std::initializer_list<MethodName> methods) const;

  const RunConfig& config_;
  const ModelSizes& model_;
  int sharing_;
};

/// "412 MiB".
std::string memory_text(uint64_t bytes);

}  // namespace selfcal
