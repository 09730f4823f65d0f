// From one shard to the next, job after job, where a layer is measured behind the compressed ones
// before it: how a job went, then its hidden states, once the next shard has room for them.
#pragma once
#include <array>
#include <memory>
#include <set>
#include <utility>
#include <vector>

#include "comm/outbox.hpp"
#include "pipeline/boundary.hpp"
#include "pipeline/job.hpp"

namespace selfcal {

/// How a job went in the shards before: its chain so far, or why it failed.
struct JobNote {
  int64_t job = 0;
  int64_t code = 0;  // ExitCode of a failure
  std::array<char, 32> chain{};
  std::array<char, 464> error{};  // one line, cut to fit
};

/// The shard after this one. At most the outputs of one job wait here while this shard works on the
/// next job.
class NextShard {
 public:
  NextShard(const Communicator& world, const SharedStop& stop)
      : world_(world), stop_(stop), outbox_(world, stop, BoundaryOutbox::no_limit), notes_(world) {}

  /// Told by the first rank of this team to all of the next one.
  void tell(const Job& job, const JobNote& note);
  /// The outputs of `job`: hidden[i] is those of owned[i]. Those of the job before must be taken.
  void offer(const Job& job, std::vector<Leaf> owned, HiddenStates hidden);
  /// Sends to the ranks that have asked since, and does not wait until they have taken it: they
  /// have room, and work on the first leaf while others are on their way. To be called now and
  /// then.
  void poll();
  /// Waits until all is taken, or a stop is wished for.
  void finish();
  /// Whether nothing is on its way.
  bool all_sent();

 private:
  void send_to(int rank);
  bool all_taken();

  struct Parcel {
    at::Tensor hidden;
    Request request;
  };
  const Communicator& world_;
  const SharedStop& stop_;
  BoundaryOutbox outbox_;
  std::vector<Parcel> by_nccl_;  // on their way
  Outbox notes_;
  const Job* job_ = nullptr;  // whose outputs wait
  std::vector<Leaf> owned_;
  HiddenStates hidden_;
  std::set<int> waiting_;                    // ranks that have not been sent theirs
  std::set<std::pair<int64_t, int>> asked_;  // job and rank, not served yet
};

/// The shard before this one. The next one is served in waits for it.
class ShardBefore {
 public:
  ShardBefore(const Communicator& world, const SharedStop& stop, NextShard& next)
      : world_(world), stop_(stop), next_(next), questions_(world) {}
  ~ShardBefore() { note_request_.give_up(); }
  ShardBefore(const ShardBefore&) = delete;
  ShardBefore& operator=(const ShardBefore&) = delete;
  /// Waits for the note about `job`. The wait ends without it when a stop is wished for: to be
  /// followed by stop_together().
  JobNote note_of(const Job& job);
  /// Asks for the hidden states of `owned`, which come into the host's memory, or where NCCL brings
  /// them into the device's. All of them must be taken before those of the next job are asked for.
  LeafInbox& ask(const Job& job, const std::vector<Leaf>& owned);

 private:
  const Communicator& world_;
  const SharedStop& stop_;
  NextShard& next_;
  // Open when a wait was ended.
  JobNote note_;
  Request note_request_;
  Outbox questions_;
  std::unique_ptr<LeafInbox> inbox_;
};

/// This rank's neighbours while jobs flow through the shards.
struct Handover {
  Handover(const Communicator& world, const SharedStop& stop)
      : next(world, stop), before(world, stop, next) {}
  NextShard next;
  ShardBefore before;
};

}  // namespace selfcal
