// One statistics group solved by a team: one rank factorises, all ranks solve rows, all ranks get
// the result.
#pragma once
#include <map>
#include <string>
#include <vector>

#include "comm/communicator.hpp"
#include "pipeline/phase_timer.hpp"
#include "pipeline/tap_statistics.hpp"

namespace selfcal {

/// A linear layer to solve.
struct LinearProblem {
  std::string name;
  at::Tensor weight;  // [rows, columns], in any memory
  MethodSettings settings;
};

/// Collective over `team`; every rank gives the same problems and statistics of their input, and
/// gets the same result. Matrices that share a factor are stacked before their row tiles are dealt,
/// so that no rank waits for a narrow one. While one rank computes the factor, the others measure
/// their rows' controls, and they get more of the rows.
std::map<std::string, CompressedLinear> solve_together(const Communicator& team,
                                                       const std::vector<LinearProblem>& problems,
                                                       const TapStatistics& statistics,
                                                       PhaseTimer& timer, kernels::Context context);

}  // namespace selfcal
