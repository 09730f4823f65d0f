// Commands that run on many ranks, or alone.
#pragma once
#include <functional>

#include "comm/communicator.hpp"

namespace selfcal {

/// Calls `work` with all ranks that mpirun or srun has started, or with this one alone. Throws
/// Reported after an error: one that all ranks agree on ends in an orderly way, another one ends
/// the job at once.
void on_ranks(const std::function<void(const Communicator& world)>& work);

}  // namespace selfcal
