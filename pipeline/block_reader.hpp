// A block's weights for a team: read by its first rank, a layer ahead, and broadcast while the team
// still works on the layer before.
#pragma once
#include <future>
#include <optional>

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
      : BlockReader(session.model, session.context.device, session.timer, team, end,
                    std::move(source)) {}
  BlockReader(const Model& model, const kernels::Device& device, PhaseTimer& timer,
              const Communicator& team, int64_t end, BlockSource source)
      : model_(model),
        device_(device),
        timer_(timer),
        team_(team),
        end_(end),
        source_(std::move(source)) {}
  /// Ends the broadcast that is on its way, in which all ranks of the team take part.
  ~BlockReader();
  BlockReader(const BlockReader&) = delete;
  BlockReader& operator=(const BlockReader&) = delete;

  /// Collective over the team: the next block, in order. In the host's memory; on ranks that get
  /// them by NCCL, in their device's.
  BlockWeights read(int64_t layer);

  /// Collective over the team, between other work on the block that was read last: once the first
  /// rank has read the next block its broadcast begins here. What went wrong with it read() tells.
  void share_ahead();

 private:
  /// A block on its way to all ranks.
  struct Shared {
    BlockWeights weights;
    std::vector<at::Tensor> sent;  // the first rank's, in the memory that they travel from
    std::vector<Request> requests;
  };
  void read_ahead();
  bool has_read_ahead() const;
  void begin_sharing(BlockWeights weights);
  BlockWeights finish_sharing();

  const Model& model_;
  kernels::Device device_;
  PhaseTimer& timer_;
  const Communicator& team_;
  int64_t end_;
  BlockSource source_;
  int64_t next_ = 0;                        // that is to be read
  std::shared_future<BlockWeights> ahead_;  // the next block, on the first rank
  std::optional<Shared> shared_;            // the same, on all
};

}  // namespace selfcal
