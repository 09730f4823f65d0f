// The threads of this process.
#pragma once
#include <memory>

#include "base/thread_pool.hpp"
#include "comm/communicator.hpp"
#include "stages/kernels/ops.hpp"

namespace selfcal {

struct CoresOfNode {
  int ranks = 0;          // of the node with the most of them
  int sharing_ranks = 0;  // that may use the very same cores as this one, itself included
  int of_all_ranks = 0;   // cores that any of them may use
};

/// What the launcher gave the ranks on this node. Collective.
CoresOfNode cores_of_node(const Communicator& world);

/// Cores that this process may use (its affinity mask).
int usable_cores();

/// Owns the pool that all computing of the process in host memory runs on.
class Compute {
 public:
  /// `threads` 0: the usable cores divided by the ranks that share them, at least 1.
  explicit Compute(int threads, int sharing_ranks = 1, kernels::Device device = {});
  kernels::Context context() const { return {pool_.get(), device_}; }

 private:
  std::unique_ptr<ThreadPool> pool_;
  kernels::Device device_;
};

}  // namespace selfcal
