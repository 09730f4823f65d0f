// From one shard to the next, job after job, where a layer is measured behind the compressed ones
// before it: how a job went, then its hidden states, once the next shard has room for them.
#pragma once
#include <array>
#include <list>
#include <optional>
#include <set>
#include <utility>
#include <vector>

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
      : world_(world), stop_(stop), outbox_(world, stop) {}

  /// Told by the first rank of this team to all of the next one.
  void tell(const Job& job, const JobNote& note);
  /// The outputs of `job`: hidden[i] is those of owned[i]. Those of the job before must be taken.
  void offer(const Job& job, std::vector<Leaf> owned, std::vector<at::Tensor> hidden);
  /// Sends to the ranks that have asked since; to be called now and then.
  void poll();
  /// Waits until all is taken, or a stop is wished for.
  void finish();
  /// Whether nothing is on its way.
  bool all_sent();

 private:
  void send_to(int rank);

  struct Letter {
    JobNote note;
    Request request;
  };
  const Communicator& world_;
  const SharedStop& stop_;
  BoundaryOutbox outbox_;
  std::list<Letter> letters_;  // stable addresses
  const Job* job_ = nullptr;   // whose outputs wait
  std::vector<Leaf> owned_;
  std::vector<at::Tensor> hidden_;
  std::set<int> waiting_;                    // ranks that have not got theirs
  std::set<std::pair<int64_t, int>> asked_;  // job and rank, not served yet
};

/// The shard before this one. Waits end when a stop is wished for, without what they were for: to
/// be followed by stop_together().
class ShardBefore {
 public:
  ShardBefore(const Communicator& world, const SharedStop& stop) : world_(world), stop_(stop) {}
  ~ShardBefore() { note_request_.give_up(); }
  ShardBefore(const ShardBefore&) = delete;
  ShardBefore& operator=(const ShardBefore&) = delete;
  /// Waits for the note about `job`.
  JobNote note_of(const Job& job);
  /// Asks for the hidden states of `owned` and waits for them; in the host's memory, or where NCCL
  /// brings them in the device's.
  std::vector<at::Tensor> take(const Job& job, const std::vector<Leaf>& owned);

 private:
  std::vector<at::Tensor> take_on_host(const Job& job, const std::vector<Leaf>& owned);
  std::vector<at::Tensor> take_on_device(const Job& job, const std::vector<Leaf>& owned);

  const Communicator& world_;
  const SharedStop& stop_;
  // Open when a wait was ended.
  JobNote note_;
  Request note_request_;
  std::optional<BoundaryInbox> inbox_;
};

/// This rank's neighbours while jobs flow through the shards.
struct Handover {
  Handover(const Communicator& world, const SharedStop& stop)
      : before(world, stop), next(world, stop) {}
  ShardBefore before;
  NextShard next;
};

}  // namespace selfcal
