// A block's weights for a team: read by its first rank, a layer ahead, and broadcast.
#pragma once
#include <future>

#include "pipeline/session.hpp"
#include "stages/evaluate/streamed_forward.hpp"

namespace selfcal {

class BlockReader {
 public:
  /// For layers up to `end` of the dense model.
  BlockReader(const Session& session, const Communicator& team, int64_t end)
      : BlockReader(session, team, end, dense_blocks(session.model)) {}
  /// For those of `source`, whose weights have the model's dtype.
  BlockReader(const Session& session, const Communicator& team, int64_t end, BlockSource source)
      : session_(session), team_(team), end_(end), source_(std::move(source)) {}

  /// Collective over the team. In the host's memory; on ranks that get them by NCCL, in their
  /// device's.
  BlockWeights read(int64_t layer);

 private:
  void share(BlockWeights& weights, int64_t layer);

  const Session& session_;
  const Communicator& team_;
  int64_t end_;
  BlockSource source_;
  std::future<BlockWeights> ahead_;
};

}  // namespace selfcal
