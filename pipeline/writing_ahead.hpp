// Calibration sets that the generators of a split layout write one after the other while the
// compressors work on the jobs before; each goes to rank 0, a compressor, when it is whole.
#pragma once
#include <functional>
#include <optional>
#include <vector>

#include "comm/outbox.hpp"
#include "pipeline/job.hpp"

namespace selfcal {

class WritingAhead {
 public:
  /// `world`: all ranks, of which `writer` is the first generator. `wanted`: one job of each set
  /// that is to be written, in the order in which they will be compressed. Borrows all.
  WritingAhead(const Communicator& world, const SharedStop& stop, int writer,
               std::vector<Job*> wanted);

  /// Collective over the generators, on which the jobs' sessions are: writes all sets. One that
  /// fails does not keep the others from being written. `on_written` is called after each. Throws
  /// Stopped on all of them.
  void write(const std::function<void(Job&)>& on_written);

  /// Collective over the compressors: takes what has come meanwhile; `wait`: at least one set.
  /// Throws Stopped on all of them.
  void receive(const Communicator& compressors, bool wait);
  /// Whether all sets have come.
  bool whole() const { return come_ == wanted_.size(); }
  /// Whether the set of a job has come, or is not one that the generators write.
  bool ready(const Job& job) const;

  /// Collective over `ranks`, whose first one is rank 0 of the world: the set of a job that is
  /// ready, once; AgreedError where it could not be written. None: it is not one that the
  /// generators write, or was taken and is in the run directory.
  std::optional<Calibration> take(const Communicator& ranks, const Job& job);

  /// Whether nothing is on its way.
  bool all_sent() { return outbox_.in_flight() == 0; }

 private:
  /// Of wanted_; its size where it is none of them.
  size_t index_of(const Job& job) const;

  const Communicator& world_;
  const SharedStop& stop_;
  int writer_;
  std::vector<Job*> wanted_;
  Outbox outbox_;                                 // of the writer
  std::vector<std::vector<std::byte>> messages_;  // that have come to rank 0 and are not taken
  size_t come_ = 0;                               // sets, as all compressors know
};

}  // namespace selfcal
