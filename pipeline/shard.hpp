// One shard's layers, in order, for one job after another: committed ones are replayed, the others
// compressed and committed.
#pragma once
#include <functional>
#include <memory>
#include <vector>

#include "pipeline/boundary.hpp"
#include "pipeline/handover.hpp"
#include "pipeline/job.hpp"

namespace selfcal {

/// Jobs that go through the layers together: one, or with dense propagation all that share model
/// and calibration, whose forward and statistics are then computed once.
struct Flow {
  std::vector<Job*> jobs;
  /// Boundary activations that others send to this rank with dense propagation; absent for the
  /// first shard and for sequential propagation.
  std::unique_ptr<LeafInbox> inbox = {};

  Job& front() const { return *jobs.front(); }
};

/// Collective over the world: every rank takes the flows in order through its shard, in `team`.
/// With sequential propagation the shards work on different flows at the same time, and nothing but
/// what a shard gives to the next one passes between them. An error that a team agrees on fails the
/// job there and in the shards after it (Job::failure), and the others go on. `on_start` is called
/// before each flow. Fills layers and seconds of the jobs.
///
/// When a stop is wished for every team ends by itself, at its next stage: Stopped on all ranks of
/// those that have not finished by then. What is on its way between shards stays open in `handover`
/// and `flows`.
void compress_flows(const Communicator& team, std::vector<Flow>& flows, Handover& handover,
                    TimeAccount& time, const std::function<void(const Flow&)>& on_start);

}  // namespace selfcal
