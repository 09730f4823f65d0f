// One shard's layers, in order: committed ones are replayed, the others compressed and committed.
#pragma once
#include <optional>
#include <vector>

#include "pipeline/boundary.hpp"
#include "pipeline/session.hpp"
#include "storage/layer_file.hpp"

namespace selfcal {

/// What a job is, on every rank.
struct Job {
  std::string id;
  at::Tensor tokens;  // int32 [sequences, length]
  std::vector<Leaf> leaves;
  std::vector<std::optional<LayerHeader>>
      committed;  // by layer: an intact file of this job, when the run started
};

/// Diagnostics of one layer, and the chain hash that its file carries.
struct LayerOutcome {
  int64_t layer = 0;
  std::map<std::string, CompressedLinear> linears;  // without tensors
  bool replayed = false;
};

/// Collective over the world: every rank works in its shard's team. `inbox`: boundary activations
/// that others send to this rank with dense propagation; absent for the first shard and for
/// sequential propagation. Returns the outcomes of this rank's shard.
std::vector<LayerOutcome> compress_shard(const Session& session, const Job& job,
                                         std::optional<BoundaryInbox> inbox);

}  // namespace selfcal
