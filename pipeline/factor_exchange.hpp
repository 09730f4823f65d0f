// Factors from the rank that has found them, or their first half, to its team.
#pragma once
#include <optional>

#include "comm/communicator.hpp"
#include "pipeline/phase_timer.hpp"
#include "stages/solve/factor.hpp"

namespace selfcal {

/// Columns from which on the inverse is dealt: one of so many takes a core 20 ms, its messages and
/// waits a few. Where the tensor library factorises it never is.
inline constexpr int64_t narrowest_dealt_inverse = 1024;

/// Collective: the owner's factor, whole, on all ranks, in `memory`.
Factor spread_factor(const Communicator& team, Factor factor, int owner, at::Device memory,
                     const kernels::Device& device);

/// Collective: the owner's L goes to all ranks, each inverts some strips of it, and all get the
/// factor, with the bits that one rank comes to, in the host's memory. As many bytes on their way
/// as the whole factor has. Nothing where the owner gives nothing, or the inverse is not finite.
std::optional<Factor> invert_together(const Communicator& team, std::optional<LowerFactor> found,
                                      int owner, PhaseTimer& timer,
                                      const kernels::Context& context);

}  // namespace selfcal
