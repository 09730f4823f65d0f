// Factors from the rank that has found them to its team, and those that a team finds together.
#pragma once
#include <optional>

#include "comm/communicator.hpp"
#include "pipeline/phase_timer.hpp"
#include "stages/solve/factor.hpp"

namespace selfcal {

/// Columns from which on a team finds a factor together; where the tensor library factorises it
/// never does.
inline constexpr int64_t narrowest_dealt_factor = 1024;

/// Collective: the owner's factor, whole, on all ranks, in `memory`.
Factor spread_factor(const Communicator& team, Factor factor, int owner, at::Device memory,
                     const kernels::Device& device);

/// Collective: the factor of a Hessian that all ranks have, found together, with the bits that one
/// rank comes to, in the host's memory. As many bytes on their way as the whole factor has.
/// Nothing, on all ranks, where that takes more than one attempt. Errors begin with `name`.
std::optional<Factor> factorise_together(const Communicator& team, const at::Tensor& hessian,
                                         const MethodSettings& settings, const std::string& name,
                                         PhaseTimer& timer, const kernels::Context& context);

}  // namespace selfcal
