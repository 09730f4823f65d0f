// From one shard to the next, job after job, where a layer is measured behind the compressed ones
// before it: how a job went, then its hidden states, once the next shard has room for them.
#pragma once
#include <array>
#include <list>
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
  NextShard(const Communicator& world, const StopSignal& stop) : world_(world), stop_(stop) {}

  /// Told by the first rank of this team to all of the next one.
  void tell(const Job& job, const JobNote& note);
  /// The outputs of `job`: hidden[i] is those of owned[i]. Waits until those of the job before are
  /// taken.
  void offer(const Job& job, std::vector<Leaf> owned, std::vector<at::Tensor> hidden);
  /// Sends to the ranks that have asked since; to be called now and then.
  void poll();
  /// Waits until all is taken; throws Stopped when the wait ends by the signal.
  void finish();

 private:
  void send_to(int rank);

  struct Letter {
    JobNote note;
    Request request;
  };
  const Communicator& world_;
  const StopSignal& stop_;
  std::list<Letter> letters_;  // stable addresses
  const Job* job_ = nullptr;   // whose outputs wait
  std::vector<Leaf> owned_;
  std::vector<at::Tensor> hidden_;
  std::set<int> waiting_;                    // ranks that have not got theirs
  std::set<std::pair<int64_t, int>> asked_;  // job and rank, not served yet
};

/// The shard before this one.
class ShardBefore {
 public:
  ShardBefore(const Communicator& world, const StopSignal& stop) : world_(world), stop_(stop) {}
  /// Waits for the note about `job`.
  JobNote note_of(const Job& job) const;
  /// Asks for the hidden states of `owned` and waits for them; in the host's memory, or where NCCL
  /// brings them in the device's.
  std::vector<at::Tensor> take(const Job& job, const std::vector<Leaf>& owned) const;

 private:
  std::vector<at::Tensor> take_on_host(const Job& job, const std::vector<Leaf>& owned) const;
  std::vector<at::Tensor> take_on_device(const Job& job, const std::vector<Leaf>& owned) const;

  const Communicator& world_;
  const StopSignal& stop_;
};

}  // namespace selfcal
