// The threads of this process.
#pragma once
#include <memory>

#include "base/thread_pool.hpp"
#include "comm/communicator.hpp"
#include "stages/kernels/ops.hpp"

namespace selfcal {

/// Ranks on this node that may use the very same cores as this one, itself included. Collective.
int ranks_sharing_cores(const Communicator& world);

/// Cores that this process may use (its affinity mask).
int usable_cores();

/// Owns the pool that all computing of the process runs on.
class Compute {
 public:
  /// `threads` 0: the usable cores divided by the ranks that share them, at least 1.
  explicit Compute(int threads, int sharing_ranks = 1);
  kernels::Context context() const { return {pool_.get()}; }

 private:
  std::unique_ptr<ThreadPool> pool_;
};

}  // namespace selfcal
