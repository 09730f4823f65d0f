// How long a team's factors take beside the errors of its controls, learned while it works: ranks
// are then dealt so that they end together. Nobody's results depend on it.
#pragma once
#include <array>
#include <cstdint>

#include "comm/communicator.hpp"

namespace selfcal {

class SolvePace {
 public:
  /// This rank has spent so many seconds on work of `cost`, in units of its own kind.
  void note_factors(double cost, double seconds) { note(0, cost, seconds); }
  void note_controls(double cost, double seconds) { note(2, cost, seconds); }
  /// Puts together what ranks have noted since the last time. Collective.
  void share(const Communicator& team);

  /// The cost of controls that take as long as a factor of cost 1; the same on every rank.
  double controls_a_factor() const { return ratio_; }

 private:
  void note(size_t kind, double cost, double seconds);

  std::array<int64_t, 4> noted_{};  // cost and nanoseconds of factors, then of controls
  std::array<double, 4> known_{};   // of all ranks, older work counting less
  double ratio_ = 1;
};

}  // namespace selfcal
